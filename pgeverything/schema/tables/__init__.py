"""The same tables as SQLAlchemy Core knows them, for your own queries, and for Alembic to leave alone.

The migrations make the tables; nothing here creates or changes one. A test compares the two, column by column.
"""

from __future__ import annotations

from sqlalchemy import MetaData

from . import audit, cache, events, jobs, locks, pubsub, scheduler


def metadata(schema: str = "pgeverything") -> MetaData:
    """Return the tables, and the view `all_jobs`, as they are in that schema.

    ```python
    tables = metadata().tables
    jobs = tables["pgeverything.all_jobs"]
    session.execute(select(jobs.c.id).where(jobs.c.state == "dead", jobs.c.args["order"].as_integer() == 42))
    ```

    Read what you like. Write through the library: one job is rows in several tables.

    Alembic compares only your default schema unless `include_schemas=True`; with it, leave ours out in `env.py`:

    ```python
    def include_name(name, type_, parent_names):
        return type_ != "schema" or name != "pgeverything"
    ```

    Args:
        schema: the Postgres schema that holds them.
    """
    tables = MetaData(schema=schema)
    for module in (jobs, events, pubsub, scheduler, cache, locks, audit):
        module.define(tables)
    return tables
