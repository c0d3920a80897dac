"""``pgeverything demo``: the job queue on real input, with a worker killed half way.

Every ``.py`` file of the running interpreter's standard library becomes a job that parses it. `files` finds them,
`tasks` is what the worker processes run, `fleet` starts and ends those, `schedule` ticks beside them, `run` is the
whole course of it, `report` what it measures.
"""
