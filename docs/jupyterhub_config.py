"""A JupyterHub for a class on one machine: the settings that labkit needs, to be read beside docs/workshop.md.

Once, as the owner of the cache:  LABKIT_CACHE=/srv/labkit labkit pull --shared
Then:                             LABKIT_CACHE=/srv/labkit jupyterhub -f jupyterhub_config.py
"""

import os

c = get_config()  # noqa: F821, JupyterHub's

# Every kernel maps the one copy of the weights that `labkit pull --shared` has made. Students only read it.
CACHE = os.environ.get("LABKIT_CACHE", "/srv/labkit")

# labkit takes as many threads as there are free processors, by affinity, quota and load, and looks again as it runs.
# Threads that wait for others must not spin meanwhile, and idle memory goes back to the machine. The names are those of
# OpenMP (both of its libraries), of the C library and of oneDNN.
c.Spawner.environment = {
    "LABKIT_CACHE": CACHE,
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 20),
    "MALLOC_MMAP_THRESHOLD_": str(1 << 20),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "8",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONNODEBUGRANGES": "1",  # code without the columns of its lines: 4 MB
}

# Limits are kept by spawners that have containers or control groups (systemdspawner, DockerSpawner); with others they
# are only shown. They are for all kernels of a student together. A kernel with the default model takes about 400 MB of
# its own and maps 350 that all share; that of notebook 04 takes up to 1.5 GB.
c.Spawner.mem_limit = "2G"
c.Spawner.cpu_limit = 2.0

# The first start on a busy machine takes its time.
c.Spawner.start_timeout = 120
c.Spawner.http_timeout = 120
c.Spawner.default_url = "/lab"

# A kernel that nobody has used for half an hour ends and gives its memory back.
c.Spawner.args = ["--MappingKernelManager.cull_idle_timeout=1800"]

# How people log in is yours to choose: https://jupyterhub.readthedocs.io has the list. Without a choice JupyterHub
# asks the machine's own accounts (PAM).
