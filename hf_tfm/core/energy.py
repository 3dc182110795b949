"""Measures the energy of a run with codecarbon, where that is installed (`pip install 'hf-tfm[energy]'`)."""

import importlib.metadata
import importlib.util
import logging
from typing import Any


# Watts of a core and of a gibibyte of memory: the defaults of Green Algorithms (Lannelongue et al. 2021).
CORE_WATTS, MEMORY_WATTS = 12.0, 0.3725
_JOULES_PER_KILOWATT_HOUR = 3.6e6


def estimated_watts(threads: int, memory_gib: float) -> float:
    """Return the power of a machine of which nothing was measured."""
    return CORE_WATTS * threads + MEMORY_WATTS * memory_gib


class EnergyMeter:
    """
    Measures the energy of the whole machine from now on; without codecarbon it measures nothing.

    codecarbon reads the counters of CPUs (RAPL, where the kernel permits it) and of GPUs, and estimates the rest. It
    runs offline, writes no file and sends nothing.

    Attributes:
        source: codecarbon's version and how it measures the CPU; None without codecarbon.
    """

    source: str | None = None

    def __init__(self) -> None:
        self._tracker: Any = None
        if importlib.util.find_spec("codecarbon") is None:
            return
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.core.cpu import is_rapl_available
        from codecarbon.output_methods.base_output import BaseOutput

        logging.getLogger("codecarbon").setLevel(logging.ERROR)

        class LastOutput(BaseOutput):
            data: Any = None

            def out(self, total: Any, delta: Any) -> None:
                self.data = total

        self._output = LastOutput()
        self._tracker = OfflineEmissionsTracker(
            country_iso_code="USA",  # only for emissions, which are not recorded
            output_handlers=[self._output],
            save_to_file=False,
            save_to_api=False,
            allow_multiple_runs=True,
            log_level="error",
        )
        self._tracker.start()
        cpu = "CPU measured by RAPL" if is_rapl_available() else "CPU estimated from its load"
        self.source = f"codecarbon {importlib.metadata.version('codecarbon')}, {cpu}, memory estimated"

    def read(self) -> dict[str, float]:
        """Return the joules of CPU, memory and GPUs since the beginning; empty without codecarbon."""
        if self._tracker is None:
            return {}
        self._tracker.flush()
        if (data := self._output.data) is None:  # codecarbon hides its errors
            return {}
        kilowatt_hours = {"cpu": data.cpu_energy, "memory": data.ram_energy, "gpu": data.gpu_energy}
        return {name: used * _JOULES_PER_KILOWATT_HOUR for name, used in kilowatt_hours.items() if used}
