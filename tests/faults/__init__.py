"""What may go wrong, made to go wrong: kills, restarts, frozen processes, broken connections, unlucky interleavings.

The sizes suit a test run of a few minutes on two cores. For a longer soak, set

* ``FAULTS_JOBS``: how many jobs pass through the killed fleet and beside the pinned snapshot (20000);
* ``FAULTS_RESTARTS``: how often a server is restarted in mid-run (2);
* ``FAULTS_ORDERED``: how many jobs of ordering keys pass through eight processes (400);
* ``FAULTS_SEED``: the seed of what happens by chance; a failing test prints the one it had.
"""
