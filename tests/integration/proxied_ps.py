"""``ecrec-ps`` that is reached through a proxy, for tests: others are told the endpoint that PROXY_ENDPOINT names."""

import os

from ecrec.launch.servers import ps

if __name__ == "__main__":
    ps.advertised = lambda endpoint, host, scheduler: os.environ["PROXY_ENDPOINT"]  # type: ignore[assignment]
    ps.main()
