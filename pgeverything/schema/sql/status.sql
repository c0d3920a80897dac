-- name: server
-- The server's version, the database, the role, and whether it is a standby.
select current_setting('server_version'), current_database()::text, current_user::text, pg_is_in_recovery();
