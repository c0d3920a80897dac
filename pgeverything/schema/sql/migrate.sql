-- name: applied
-- The migrations this schema has, oldest first.
select version, name, breaking, applied_at from pgeverything.migrations order by version;

-- name: exists
-- Whether the table of migrations is there.
select to_regclass(%(table)s::text) is not null;

-- name: lock
-- One migrator at a time, for this schema, until the transaction ends.
select pg_advisory_xact_lock(hashtextextended('pgeverything migrate ' || %(schema)s::text, 0));

-- name: record
-- Note a migration as applied.
insert into pgeverything.migrations (version, name, breaking) values (%(version)s::integer, %(name)s::text, %(breaking)s::boolean);

-- name: may_create
-- Whether this role may do what a migration does, and its name.
select current_user::text,
       case when to_regnamespace(quote_ident(%(schema)s::text)) is null then has_database_privilege(current_database(), 'create')
            else has_schema_privilege(%(schema)s::text, 'create') end;
