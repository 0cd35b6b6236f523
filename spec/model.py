"""The command job as one frozen model: what it says, and what that asks of the cluster.

Shaped as Azure Machine Learning's CLI v2 has it; our own keys sit beside. A key that is not here is
refused; a key that is here and cannot be honoured is warned about in compat.py. Defaults are part of
the canonical form, so that a stored job keeps its meaning when a default changes.
"""

import json
import posixpath
from collections.abc import Mapping
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field

from .code import CodeGit
from .expressions import resolve
from .fields import Identifier, Line, Lower
from .parts import EnvironmentValue
from .placement import Placement
from .resources import Constraints, GangDemand, Resources
from .scalars import ScalarValue, as_text
from .submission import Submission, absolute, canonical, slug
from .work import Work

PARAMS_MAX: Final = 1000
PARAMS_VARIABLE: Final = "PACELINE_PARAMS"
PARAM_VARIABLE: Final = "PACELINE_PARAM_"


class JobSpec(Submission, Work):
    """One job: a command, what it reads and writes, and what it needs."""

    model_config = ConfigDict(defer_build=False)

    type: Annotated[Literal["command"], Lower] = "command"
    """Kind of the document."""
    params: dict[Identifier, ScalarValue] = Field(default={}, max_length=PARAMS_MAX)
    """Values for `${{search_space.NAME}}` and `run.params`: a sweep gives them to each of its trials."""
    parent_job_name: Line = ""
    """Not used here."""

    @property
    def label(self) -> str:
        """What to call the job: its name, or else what comes nearest to one. A valid name, always."""
        if self.name:
            return self.name
        program = posixpath.basename(self.command.split()[0])
        words = (self.display_name, self.experiment_name, self.folder_name, program)
        return next((found for found in map(slug, words) if found), "job")

    def param_values(self) -> dict[str, str]:
        """What each `${{search_space.NAME}}` becomes, as text."""
        return {name: as_text(value) for name, value in self.params.items()}

    def param_variables(self) -> dict[str, str]:
        """The variables by which processes know the values; none without values."""
        if not self.params:
            return {}
        each = {PARAM_VARIABLE + name: text for name, text in self.param_values().items()}
        return {PARAMS_VARIABLE: json.dumps(self.params, sort_keys=True, ensure_ascii=False), **each}

    def resolved_command(self, outputs: Mapping[str, str]) -> str:
        """The command with its expressions resolved; `outputs` gives a path for each output."""
        return resolve(self.command, self.input_values(), outputs, self.param_values())

    def resolved_variables(self, outputs: Mapping[str, str]) -> dict[str, str]:
        """The environment variables with their expressions resolved, and those that hold the params."""
        inputs, params = self.input_values(), self.param_values()
        variables = self.environment_variables.items()
        return {
            name: resolve(text, inputs, outputs, params) for name, text in variables
        } | self.param_variables()

    def demand(self) -> GangDemand:
        """What placement needs to know."""
        want = self.resources
        cpus = self.process_count if want.cpus is None else want.cpus
        return GangDemand(
            per_task=Resources(
                max(1, round(cpus * 1000)), want.memory, want.gpus.whole, want.gpus.share_milli
            ),
            instance_count=want.instance_count,
            instance_count_min=want.min_instance_count or want.instance_count,
            instance_count_max=want.max_instance_count or want.instance_count,
            processes_per_task=self.process_count,
            gpu_models=want.gpus.model,
            gpu_memory_bytes=want.gpus.memory,
            environment=self.mapped_environment,
            image=self.container_image,
            exclusive=self.exclusive,
            rendezvous=self.distribution is not None,
            constraints=self._constraints(),
            pool=self.pool,
        )

    def _constraints(self) -> Constraints | None:
        if self.placement is None and self.topology is None:
            return None
        where, close = self.placement or Placement(), self.topology
        found = Constraints(
            labels=tuple(sorted(where.labels.items())),
            prefer=tuple(sorted(where.prefer.items())),
            tolerate=tuple(
                sorted((key, value) for key, _, value in (one.partition("=") for one in where.tolerate))
            ),
            within=close.within if close else "",
            within_preferred=close is not None and close.mode == "preferred",
        )
        return found if found != Constraints() else None

    def rooted(self, folder: str) -> "JobSpec":
        """The same job with its local paths made absolute, those relative ones below `folder`."""
        code = absolute(folder, self.code) if self.code else None
        return self.model_copy(update={"inputs": self.rooted_inputs(folder), "code": code})

    def with_code(self, tree: str, git: CodeGit | None) -> "JobSpec":
        """The same job, running in that tree."""
        return self.model_copy(update={"code_tree": tree, "code_git": git})

    def with_environment(self, environment: EnvironmentValue) -> "JobSpec":
        """The same job in that environment."""
        return self.model_copy(update={"environment": environment})

    def running_in(self, folder: str) -> "JobSpec":
        """The same job, run in `folder` unless it says where."""
        return self if self.code else self.model_copy(update={"code": folder, "code_in_place": True})

    def to_json(self) -> str:
        """Canonical JSON: equal jobs have equal text, defaults included."""
        return canonical(self.plain())
