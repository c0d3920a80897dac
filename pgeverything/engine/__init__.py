"""How a statement reaches Postgres: plans, the carriers that run them, and nothing about queues or locks."""
