"""Made by scripts/statements.py from statements.py; do not edit."""

from typing import Final

from .ahead import Ahead

SQLITE: Final = Ahead(
    schema_version=(
        'SELECT alembic_version.version_num FROM alembic_version'
    ),
    insert_meta=(
        'INSERT INTO meta (name, value) VALUES (?, ?)'
    ),
    upsert_meta=(
        'INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = '
        'excluded.value'
    ),
    insert_event=(
        'INSERT INTO events (seq, at_us, kind, body, job, node) VALUES (?, ?, ?, ?, ?, ?)'
    ),
    upsert_job=(
        'INSERT INTO jobs (job, name, user, state, priority, submitted_us, finished_us, demand, '
        'record) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (job) DO UPDATE SET name = '
        'excluded.name, user = excluded.user, state = excluded.state, priority = excluded.priority,'
        ' submitted_us = excluded.submitted_us, finished_us = excluded.finished_us, demand = '
        'excluded.demand, record = excluded.record'
    ),
    upsert_document=(
        'INSERT INTO documents (job, document) VALUES (?, ?) ON CONFLICT (job) DO UPDATE SET '
        'document = excluded.document'
    ),
    upsert_node=(
        'INSERT INTO nodes (node, record) VALUES (?, ?) ON CONFLICT (node) DO UPDATE SET record = '
        'excluded.record'
    ),
    upsert_account=(
        'INSERT INTO accounts (queue, record) VALUES (?, ?) ON CONFLICT (queue) DO UPDATE SET '
        'record = excluded.record'
    ),
    delete_account=(
        'DELETE FROM accounts WHERE accounts.queue = ?'
    ),
    insert_key=(
        'INSERT INTO keys ("key", at_us, jobs) VALUES (?, ?, ?)'
    ),
    insert_metric=(
        'INSERT INTO metrics (job, attempt, rank, step, name, value, at_us) VALUES (?, ?, ?, ?, ?, '
        '?, ?)'
    ),
    upsert_study=(
        'INSERT INTO studies (study, name, version, record) VALUES (?, ?, ?, ?) ON CONFLICT (study)'
        ' DO UPDATE SET name = excluded.name, version = excluded.version, record = excluded.record'
    ),
    upsert_trial=(
        'INSERT INTO trials (study, number, job, state, version, record) VALUES (?, ?, ?, ?, ?, ?) '
        'ON CONFLICT (study, number) DO UPDATE SET job = excluded.job, state = excluded.state, '
        'version = excluded.version, record = excluded.record'
    ),
    upsert_trial_value=(
        'INSERT INTO trial_values (study, number, step, value, version) VALUES (?, ?, ?, ?, ?) ON '
        'CONFLICT (study, number, step) DO UPDATE SET value = excluded.value, version = '
        'excluded.version'
    ),
    delete_study=(
        'DELETE FROM studies WHERE studies.study = ?'
    ),
    delete_trials=(
        'DELETE FROM trials WHERE trials.study = ?'
    ),
    delete_trial_values=(
        'DELETE FROM trial_values WHERE trial_values.study = ?'
    ),
    upsert_asset_name=(
        'INSERT INTO asset_names (kind, name, record) VALUES (?, ?, ?) ON CONFLICT (kind, name) DO '
        'UPDATE SET record = excluded.record'
    ),
    upsert_asset=(
        'INSERT INTO assets (kind, name, version, record) VALUES (?, ?, ?, ?) ON CONFLICT (kind, '
        'name, version) DO UPDATE SET record = excluded.record'
    ),
    insert_edge=(
        'INSERT INTO edges (source, target, relation) VALUES (?, ?, ?) ON CONFLICT DO NOTHING'
    ),
    upsert_endpoint=(
        'INSERT INTO endpoints (name, record) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record'
        ' = excluded.record'
    ),
    delete_endpoint=(
        'DELETE FROM endpoints WHERE endpoints.name = ?'
    ),
    upsert_outputs=(
        'INSERT INTO outputs (job, record) VALUES (?, ?) ON CONFLICT (job) DO UPDATE SET record = '
        'excluded.record'
    ),
    delete_outputs=(
        'DELETE FROM outputs WHERE outputs.job = ?'
    ),
    meta=(
        'SELECT meta.value FROM meta WHERE meta.name = ?'
    ),
    last_event=(
        'SELECT events.seq, events.at_us FROM events WHERE events.seq = (SELECT max(events.seq) AS '
        'max_1 FROM events)'
    ),
    last_job=(
        'SELECT max(jobs.job) AS max_1 FROM jobs'
    ),
    jobs_of_state=(
        'SELECT jobs.job, jobs.name, jobs.user, jobs.state, jobs.priority, jobs.submitted_us, '
        'jobs.finished_us, jobs.demand, jobs.record FROM jobs WHERE jobs.state = ? ORDER BY '
        'jobs.job'
    ),
    nodes=(
        'SELECT nodes.node, nodes.record FROM nodes ORDER BY nodes.node'
    ),
    accounts=(
        'SELECT accounts.queue, accounts.record FROM accounts ORDER BY accounts.queue'
    ),
    key=(
        'SELECT keys."key", keys.at_us, keys.jobs FROM keys WHERE keys."key" = ?'
    ),
    job=(
        'SELECT jobs.job, jobs.name, jobs.user, jobs.state, jobs.priority, jobs.submitted_us, '
        'jobs.finished_us, jobs.demand, jobs.record, documents.document FROM jobs LEFT OUTER JOIN '
        'documents ON jobs.job = documents.job WHERE jobs.job = ?'
    ),
    documents=(
        'SELECT documents.job, documents.document FROM documents WHERE documents.job IN (?, ?, ?, '
        '?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, '
        '?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)'
    ),
    studies=(
        'SELECT studies.study, studies.name, studies.version, studies.record FROM studies ORDER BY '
        'studies.study'
    ),
    trials=(
        'SELECT trials.study, trials.number, trials.job, trials.state, trials.version, '
        'trials.record FROM trials WHERE trials.study = ? ORDER BY trials.number'
    ),
    trial_values=(
        'SELECT trial_values.study, trial_values.number, trial_values.step, trial_values.value, '
        'trial_values.version FROM trial_values WHERE trial_values.study = ? ORDER BY '
        'trial_values.number, trial_values.step'
    ),
    asset_names=(
        'SELECT asset_names.kind, asset_names.name, asset_names.record FROM asset_names ORDER BY '
        'asset_names.kind, asset_names.name'
    ),
    assets=(
        'SELECT assets.kind, assets.name, assets.version, assets.record FROM assets ORDER BY '
        'assets.kind, assets.name, assets.version'
    ),
    endpoints=(
        'SELECT endpoints.name, endpoints.record FROM endpoints ORDER BY endpoints.name'
    ),
    outputs=(
        'SELECT outputs.job, outputs.record FROM outputs ORDER BY outputs.job'
    ),
)

POSTGRES: Final = Ahead(
    schema_version=(
        'SELECT alembic_version.version_num FROM alembic_version'
    ),
    insert_meta=(
        'INSERT INTO meta (name, value) VALUES (%s::VARCHAR, %s::VARCHAR)'
    ),
    upsert_meta=(
        'INSERT INTO meta (name, value) VALUES (%s::VARCHAR, %s::VARCHAR) ON CONFLICT (name) DO '
        'UPDATE SET value = excluded.value'
    ),
    insert_event=(
        'INSERT INTO events (seq, at_us, kind, body, job, node) VALUES (%s::BIGINT, %s::BIGINT, '
        '%s::VARCHAR, %s::VARCHAR, %s::BIGINT, %s::VARCHAR)'
    ),
    upsert_job=(
        'INSERT INTO jobs (job, name, "user", state, priority, submitted_us, finished_us, demand, '
        'record) VALUES (%s::BIGINT, %s::VARCHAR, %s::VARCHAR, %s::VARCHAR, %s::INTEGER, '
        '%s::BIGINT, %s::BIGINT, %s::VARCHAR, %s::VARCHAR) ON CONFLICT (job) DO UPDATE SET name = '
        'excluded.name, "user" = excluded."user", state = excluded.state, priority = '
        'excluded.priority, submitted_us = excluded.submitted_us, finished_us = '
        'excluded.finished_us, demand = excluded.demand, record = excluded.record'
    ),
    upsert_document=(
        'INSERT INTO documents (job, document) VALUES (%s::BIGINT, %s::VARCHAR) ON CONFLICT (job) '
        'DO UPDATE SET document = excluded.document'
    ),
    upsert_node=(
        'INSERT INTO nodes (node, record) VALUES (%s::VARCHAR, %s::VARCHAR) ON CONFLICT (node) DO '
        'UPDATE SET record = excluded.record'
    ),
    upsert_account=(
        'INSERT INTO accounts (queue, record) VALUES (%s::VARCHAR, %s::VARCHAR) ON CONFLICT (queue)'
        ' DO UPDATE SET record = excluded.record'
    ),
    delete_account=(
        'DELETE FROM accounts WHERE accounts.queue = %s::VARCHAR'
    ),
    insert_key=(
        'INSERT INTO keys (key, at_us, jobs) VALUES (%s::VARCHAR, %s::BIGINT, %s::VARCHAR)'
    ),
    insert_metric=(
        'INSERT INTO metrics (job, attempt, rank, step, name, value, at_us) VALUES (%s::BIGINT, '
        '%s::INTEGER, %s::INTEGER, %s::BIGINT, %s::VARCHAR, %s, %s::BIGINT)'
    ),
    upsert_study=(
        'INSERT INTO studies (study, name, version, record) VALUES (%s::BIGINT, %s::VARCHAR, '
        '%s::BIGINT, %s::VARCHAR) ON CONFLICT (study) DO UPDATE SET name = excluded.name, version ='
        ' excluded.version, record = excluded.record'
    ),
    upsert_trial=(
        'INSERT INTO trials (study, number, job, state, version, record) VALUES (%s::BIGINT, '
        '%s::BIGINT, %s::BIGINT, %s::VARCHAR, %s::BIGINT, %s::VARCHAR) ON CONFLICT (study, number) '
        'DO UPDATE SET job = excluded.job, state = excluded.state, version = excluded.version, '
        'record = excluded.record'
    ),
    upsert_trial_value=(
        'INSERT INTO trial_values (study, number, step, value, version) VALUES (%s::BIGINT, '
        '%s::BIGINT, %s::BIGINT, %s, %s::BIGINT) ON CONFLICT (study, number, step) DO UPDATE SET '
        'value = excluded.value, version = excluded.version'
    ),
    delete_study=(
        'DELETE FROM studies WHERE studies.study = %s::BIGINT'
    ),
    delete_trials=(
        'DELETE FROM trials WHERE trials.study = %s::BIGINT'
    ),
    delete_trial_values=(
        'DELETE FROM trial_values WHERE trial_values.study = %s::BIGINT'
    ),
    upsert_asset_name=(
        'INSERT INTO asset_names (kind, name, record) VALUES (%s::VARCHAR, %s::VARCHAR, '
        '%s::VARCHAR) ON CONFLICT (kind, name) DO UPDATE SET record = excluded.record'
    ),
    upsert_asset=(
        'INSERT INTO assets (kind, name, version, record) VALUES (%s::VARCHAR, %s::VARCHAR, '
        '%s::VARCHAR, %s::VARCHAR) ON CONFLICT (kind, name, version) DO UPDATE SET record = '
        'excluded.record'
    ),
    insert_edge=(
        'INSERT INTO edges (source, target, relation) VALUES (%s::VARCHAR, %s::VARCHAR, '
        '%s::VARCHAR) ON CONFLICT DO NOTHING'
    ),
    upsert_endpoint=(
        'INSERT INTO endpoints (name, record) VALUES (%s::VARCHAR, %s::VARCHAR) ON CONFLICT (name) '
        'DO UPDATE SET record = excluded.record'
    ),
    delete_endpoint=(
        'DELETE FROM endpoints WHERE endpoints.name = %s::VARCHAR'
    ),
    upsert_outputs=(
        'INSERT INTO outputs (job, record) VALUES (%s::BIGINT, %s::VARCHAR) ON CONFLICT (job) DO '
        'UPDATE SET record = excluded.record'
    ),
    delete_outputs=(
        'DELETE FROM outputs WHERE outputs.job = %s::BIGINT'
    ),
    meta=(
        'SELECT meta.value FROM meta WHERE meta.name = %s::VARCHAR'
    ),
    last_event=(
        'SELECT events.seq, events.at_us FROM events WHERE events.seq = (SELECT max(events.seq) AS '
        'max_1 FROM events)'
    ),
    last_job=(
        'SELECT max(jobs.job) AS max_1 FROM jobs'
    ),
    jobs_of_state=(
        'SELECT jobs.job, jobs.name, jobs."user", jobs.state, jobs.priority, jobs.submitted_us, '
        'jobs.finished_us, jobs.demand, jobs.record FROM jobs WHERE jobs.state = %s::VARCHAR ORDER '
        'BY jobs.job'
    ),
    nodes=(
        'SELECT nodes.node, nodes.record FROM nodes ORDER BY nodes.node'
    ),
    accounts=(
        'SELECT accounts.queue, accounts.record FROM accounts ORDER BY accounts.queue'
    ),
    key=(
        'SELECT keys.key, keys.at_us, keys.jobs FROM keys WHERE keys.key = %s::VARCHAR'
    ),
    job=(
        'SELECT jobs.job, jobs.name, jobs."user", jobs.state, jobs.priority, jobs.submitted_us, '
        'jobs.finished_us, jobs.demand, jobs.record, documents.document FROM jobs LEFT OUTER JOIN '
        'documents ON jobs.job = documents.job WHERE jobs.job = %s::BIGINT'
    ),
    documents=(
        'SELECT documents.job, documents.document FROM documents WHERE documents.job IN (%s, %s, '
        '%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '
        '%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, '
        '%s, %s, %s, %s)'
    ),
    studies=(
        'SELECT studies.study, studies.name, studies.version, studies.record FROM studies ORDER BY '
        'studies.study'
    ),
    trials=(
        'SELECT trials.study, trials.number, trials.job, trials.state, trials.version, '
        'trials.record FROM trials WHERE trials.study = %s::BIGINT ORDER BY trials.number'
    ),
    trial_values=(
        'SELECT trial_values.study, trial_values.number, trial_values.step, trial_values.value, '
        'trial_values.version FROM trial_values WHERE trial_values.study = %s::BIGINT ORDER BY '
        'trial_values.number, trial_values.step'
    ),
    asset_names=(
        'SELECT asset_names.kind, asset_names.name, asset_names.record FROM asset_names ORDER BY '
        'asset_names.kind, asset_names.name'
    ),
    assets=(
        'SELECT assets.kind, assets.name, assets.version, assets.record FROM assets ORDER BY '
        'assets.kind, assets.name, assets.version'
    ),
    endpoints=(
        'SELECT endpoints.name, endpoints.record FROM endpoints ORDER BY endpoints.name'
    ),
    outputs=(
        'SELECT outputs.job, outputs.record FROM outputs ORDER BY outputs.job'
    ),
)
