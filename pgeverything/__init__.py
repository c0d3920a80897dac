"""Job queue, event log, pub/sub, locks, cache, cron, audit trail and dead letters on the Postgres you already run."""
