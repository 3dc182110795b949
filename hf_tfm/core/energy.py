"""What the processor has used, by its own counters (RAPL), where the kernel lets them be read."""

import re
import threading
import time
from pathlib import Path


# Packages and, apart from them, their memory; cores are in their package's counter, and `psys` has everything again.
_ZONES = {re.compile(r"intel-rapl:\d+"): "package", re.compile(r"intel-rapl:\d+:\d+"): "dram"}
# A counter begins anew after some 250 kJ, which at 1 kW are four minutes.
_SECONDS_BETWEEN = 60.0


class EnergyMeter:
    """
    Counts what all packages and their memory use from now on, for whatever runs on them. AMD's count under these names
    too. Linux lets only root read them (CVE-2020-8694), and few virtual machines have them.

    Args:
        powercap: where the kernel shows them.
    """

    def __init__(self, powercap: Path = Path("/sys/class/powercap")):
        self._lock = threading.Lock()
        self._counters: list[_Counter] = []
        try:
            self._counters = [_Counter(zone) for zone in sorted(powercap.glob("intel-rapl:*")) if _is_counted(zone)]
        except (OSError, ValueError):
            return  # a part of the energy would look like all of it
        if self._counters:
            threading.Thread(target=self._keep_reading, daemon=True).start()

    def read(self) -> dict[str, float]:
        """Joules by what was counted, `package-0`, `dram of package-0`; empty if it cannot be read."""
        with self._lock:
            try:
                return {counter.name: counter.read() for counter in self._counters}
            except (OSError, ValueError):
                self._counters = []
                return {}

    def _keep_reading(self) -> None:
        time.sleep(_SECONDS_BETWEEN)
        while self.read():
            time.sleep(_SECONDS_BETWEEN)


class _Counter:
    def __init__(self, zone: Path):
        self.file = zone / "energy_uj"
        package = zone.with_name(":".join(zone.name.split(":")[:2]))
        name = (zone / "name").read_text().strip()
        self.name = name if zone == package else f"{name} of {(package / 'name').read_text().strip()}"
        self.range = int((zone / "max_energy_range_uj").read_text())
        self.last, self.microjoules = int(self.file.read_text()), 0

    def read(self) -> float:
        now = int(self.file.read_text())
        self.microjoules += (now - self.last) % (self.range + 1)
        self.last = now
        return self.microjoules / 1e6


def _is_counted(zone: Path) -> bool:
    return any(
        pattern.fullmatch(zone.name) and (zone / "name").read_text().startswith(name)
        for pattern, name in _ZONES.items()
    )
