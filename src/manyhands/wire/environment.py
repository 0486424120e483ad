"""What gRPC takes from the environment only, and only once: set before it is first imported.

This is the one exception to "nothing is set up at import, and only settings touch the environment": gRPC
reads these names when its library loads, and offers no argument for them. What the user has set stays. If
somebody imported gRPC before us nothing breaks: the listener checks the TLS version of each call as well.
"""

from __future__ import annotations

import os

# Our keys are ECDSA, so an RSA suite leaves TLS 1.2 nothing to agree on; TLS 1.3 has its own list.
os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-RSA-AES128-GCM-SHA256")
# Else gRPC writes a line on stderr for each handshake that fails, and looking at a pin is one.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
