"""One rank of several that load a directory of torch.distributed.checkpoint.

python dcp_rank.py RANK RANKS FOLDER STORE. Prints, as JSON, which rows of each tensor it got, and their SHA-256.
"""

import hashlib
import json
import sys
import warnings

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, empty


def main(rank: int, ranks: int, folder: str, store: str) -> None:
    dist.init_process_group("gloo", store=dist.FileStore(store, ranks), rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    wanted = {
        name: empty(tuple(tensor.size), dtype=tensor.properties.dtype, device_mesh=mesh, placements=[Shard(0)])
        for name, tensor in metadata.items()
    }
    dcp.load(wanted, checkpoint_id=folder)
    said = {}
    for name, tensor in wanted.items():
        local = tensor.to_local()
        digest = hashlib.sha256(local.contiguous().numpy().tobytes()).hexdigest()
        said[name] = (len(local), digest, len(metadata[name].chunks))
    dist.destroy_process_group()
    print(json.dumps(said))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
