"""``ecrec-ps`` with damaged memory, for tests: at SIGUSR1 one byte of one of its parity rows changes.

What was flipped is written to the file that FLIPPED_FILE names, as JSON.
"""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from ecrec._native import Capture
from ecrec.launch.servers import ps
from ecrec.protocol.shard import ShardMachine

machines: list[ShardMachine] = []


class WatchedMachine(ShardMachine):
    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        machines.append(self)


def flip(*_: object) -> None:
    """A delta that no data row has, for the first touched parity row of a table that is striped."""
    (machine,) = machines
    placement, store = machine.placement, machine.store
    for class_id in placement.parity_classes(machine.shard):
        stripe = placement.classes[class_id]
        keys, _ = Capture(store, class_id, 0, store.class_size(class_id)).take()
        if len(keys) and len(stripe.data) > 1:
            wrong = np.zeros(store.record_bytes(int(keys[0]) >> 48), np.uint8)
            wrong[5] = 0x40
            store.fold(stripe.data[0], 2**64 - 1, keys[:1], wrong)
            key, parity = int(keys[0]), stripe.parity.index(machine.shard)
            found = {"table": key >> 48, "stripe": key & (1 << 48) - 1, "shard": machine.shard, "parity": parity}
            new = Path(os.environ["FLIPPED_FILE"] + ".new")
            new.write_text(json.dumps(found))
            new.replace(os.environ["FLIPPED_FILE"])
            return


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, flip)
    ps.ShardMachine = WatchedMachine  # type: ignore[misc]
    ps.main()
