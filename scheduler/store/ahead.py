"""Which statements a start, a commit and the loop run; statements.py makes their text, in compiled.py."""

from dataclasses import dataclass
from typing import Final

DOCUMENTS_AT_ONCE: Final = 50
"""So many jobs `documents` names."""


@dataclass(frozen=True, slots=True)
class Ahead:
    """For one kind of database's driver. What is inserted has its values in the order of the row's fields."""

    schema_version: str
    insert_meta: str
    upsert_meta: str
    insert_event: str
    upsert_job: str
    upsert_document: str
    upsert_node: str
    upsert_account: str
    delete_account: str
    insert_key: str
    insert_metric: str
    upsert_study: str
    upsert_trial: str
    upsert_trial_value: str
    delete_study: str
    delete_trials: str
    delete_trial_values: str
    upsert_asset_name: str
    upsert_asset: str
    insert_edge: str
    upsert_endpoint: str
    delete_endpoint: str
    upsert_outputs: str
    delete_outputs: str
    meta: str
    last_event: str
    last_job: str
    jobs_of_state: str
    nodes: str
    accounts: str
    key: str
    job: str
    documents: str
    studies: str
    trials: str
    trial_values: str
    asset_names: str
    assets: str
    endpoints: str
    outputs: str
