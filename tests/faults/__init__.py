"""What may go wrong, made to go wrong: kills, restarts, frozen processes, broken connections, unlucky interleavings.

The sizes suit a test run of a few minutes on two cores. For a longer soak, set

* ``FAULTS_JOBS``: how many jobs pass through the killed fleet and beside the pinned snapshot (20000);
* ``FAULTS_RESTARTS``: how often a server is restarted in mid-run (2);
* ``FAULTS_ORDERED``: how many jobs of ordering keys pass through eight processes (400);
* ``FAULTS_TICKS``: for how many seconds workers that act on schedules are killed (20);
* ``FAULTS_DOWN``: for how many seconds the server is away from schedules of every second (4);
* ``FAULTS_ACQUISITIONS``: how often each of eight processes acquires the lock whose holders are killed (100; 10000
  takes most of an hour);
* ``FAULTS_EVENTS``: how many events sixteen publishers append (50000), and how many messages pass through consumers
  that are killed (3000);
* ``FAULTS_COMMITS``: how many commits change the cached number that must never go back (250);
* ``FAULTS_WALKS``: how many walks of 40 steps the deliveries take beside their model (100);
* ``FAULTS_SEED``: the seed of what happens by chance; a failing test prints the one it had.
"""
