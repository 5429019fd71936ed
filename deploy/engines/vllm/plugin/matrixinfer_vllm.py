"""A vLLM plugin for images without a shell: tells vLLM's CPU worker which processors there are.

vLLM asks `lscpu` through a shell, and our images have neither. It knows another way, for machines where lscpu says
nothing: each processor is a core of its own, all on one memory node. Only a worker bound to processors would see a
difference, and the image sets VLLM_CPU_OMP_THREADS_BIND=nobind. vLLM calls `register` in each of its processes.
"""

from vllm.utils import cpu_resource_utils


def register() -> None:
    """Make vLLM count processors itself."""
    # Both names are vLLM's own and not promised to anyone: requirements.txt pins the version that has them.
    cpu_resource_utils._get_cpu_list = cpu_resource_utils._synthesize_cpu_list  # noqa: SLF001
