"""A gRPC server that knows nothing of Postern, or a client of it: `serve`, or `call TARGET TOKEN CA`.

The server prints its port. The client calls without a pause, unary and over a stream of its own for every tenth call, until a
line comes on standard input; a call that ends with UNAVAILABLE is made once more and counted. It answers with a line of JSON.
"""

import json
import sys
import threading
from concurrent import futures

import grpc

SERVICE = "elsewhere.Echo"


def same(message):
    return message


def unary(request, context):
    return request


def stream(requests, context):
    yield from requests


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary, same, same),
        "Stream": grpc.stream_stream_rpc_method_handler(stream, same, same),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(port, flush=True)
    sys.stdin.read()


def call(target, token, ca):
    with open(ca, "rb") as file:
        credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
    channel = grpc.secure_channel(target, credentials, [("grpc.enable_http_proxy", 0)])
    one = channel.unary_unary(f"/{SERVICE}/Unary", same, same)
    many = channel.stream_stream(f"/{SERVICE}/Stream", same, same)
    metadata = [("authorization", f"Bearer {token}")]
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.readline(), stopped.set()), daemon=True).start()

    def once(number):
        message = b"%d" % number
        if number % 10:
            assert one(message, metadata=metadata, timeout=20) == message
        else:
            messages = [message, b"and more"]
            assert list(many(iter(messages), metadata=metadata, timeout=20)) == messages

    said = {"calls": 0, "retried": 0, "failed": 0, "details": []}
    while not stopped.is_set():
        said["calls"] += 1
        try:
            once(said["calls"])
        except grpc.RpcError as error:
            said["details"].append(f"{error.code().name}: {error.details()}")
            said["retried"] += 1
            try:
                once(said["calls"])
            except grpc.RpcError as error:
                said["details"].append(f"again {error.code().name}: {error.details()}")
                said["failed"] += 1
        if said["calls"] == 1:
            print("{}", flush=True)
    print(json.dumps(said), flush=True)


if sys.argv[1] == "serve":
    serve()
else:
    call(*sys.argv[2:])
