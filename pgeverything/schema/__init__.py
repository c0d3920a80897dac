"""What Postgres holds: migrations, the statements over them, and the same tables as SQLAlchemy metadata."""
