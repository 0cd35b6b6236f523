"""Steps from one schema version to the next, run forward on start by ../migrate.py.

One that was released is never changed. To add one: copy the newest file, raise `revision`, name the old
one in `down_revision`, raise tables.SCHEMA_VERSION and bring tables.py to the same shape. There are no
steps back.
"""
