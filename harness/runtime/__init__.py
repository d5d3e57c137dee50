"""Runtime: facts of the running process: rank, cores and GPUs, stop signals, progress, versions of code and hardware.

What a process runs is decided in `execution/`.
"""

from harness.config.registry import public_face

__getattr__ = public_face(
    __name__,
    {
        "preemption": ["Preempted", "stop_requested"],
        "processes": ["process_count", "process_rank", "free_port", "threads", "visible_gpus"],
        "progress": ["Progress"],
    },
)
