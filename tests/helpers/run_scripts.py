"""
Runs several training scripts in processes that accelerate launches once:

    accelerate launch --config_file training/launch/fsdp2.yaml --num_processes 2 tests/helpers/run_scripts.py jobs.json

`jobs.json` contains pairs of a script's name and its arguments. Without a GPU accelerate silently replaces FSDP2 by
plain data parallel; this module enables FSDP2 on the CPU, with torch's own sharding over gloo.
"""

import functools
import importlib
import json
import sys
from pathlib import Path

from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from hf_tfm.core import statistics


def shard_on_cpu() -> None:
    stock = AcceleratorState.__init__

    @functools.wraps(stock)
    def init(self, *args, fsdp_plugin=None, **kwargs):
        stock(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            self.fsdp_plugin = fsdp_plugin

    AcceleratorState.__init__ = init


if __name__ == "__main__":
    shard_on_cpu()
    statistics.RESAMPLES = 60  # as in the process of the tests (conftest.py), so that intervals can be compared
    for script, arguments in json.loads(Path(sys.argv[1]).read_text()):
        AcceleratorState._reset_state()
        assert importlib.import_module(script).main(arguments) == 0, (script, arguments)
