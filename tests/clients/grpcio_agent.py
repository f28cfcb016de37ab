"""An agent on grpcio. Commands come as JSON lines, answers go as JSON lines; see README.md."""

import json
import queue
import sys

import grpc

import messages

SETUP = json.loads(sys.argv[1])
OPTIONS = [("grpc.enable_http_proxy", 0)]
if SETUP.get("authority"):
    OPTIONS.append(("grpc.default_authority", SETUP["authority"]))
COMPRESSION = grpc.Compression.Gzip if SETUP.get("gzip") else grpc.Compression.NoCompression


def channel():
    if "ca" not in SETUP:
        return grpc.insecure_channel(SETUP["target"], OPTIONS, COMPRESSION)
    with open(SETUP["ca"], "rb") as file:
        credentials = grpc.ssl_channel_credentials(root_certificates=file.read())
    return grpc.secure_channel(SETUP["target"], credentials, OPTIONS, COMPRESSION)


def metadata(command):
    token = command.get("token", SETUP["token"])
    return [("authorization", f"Bearer {token}")] if token else []


def ended(call):
    return {"code": call.code().value[0], "details": call.details()}


class Agent:
    def __init__(self):
        self.channel = channel()
        self.call = None

    def unary(self, path, command):
        method = self.channel.unary_unary(path)
        try:
            answer, call = method.with_call(
                messages.register(command.get("pod", "p")), metadata=metadata(command), timeout=20
            )
        except grpc.RpcError as error:
            return ended(error)
        return {**ended(call), "bytes": len(answer)}

    def register(self, command):
        return self.unary(messages.REGISTER, command)

    def unknown(self, command):
        return self.unary(messages.UNKNOWN, command)

    def configuration(self, command):
        method = self.channel.unary_stream(messages.GET_CONFIGURATION)
        call = method(messages.configuration_request(command.get("pod", "p")), metadata=metadata(command))
        try:
            first = next(call)
        except grpc.RpcError:
            return ended(call)
        answer = {
            "commit": messages.value(first, 2).decode(),
            "agent": messages.value(messages.value(first, 1), 4, 0),
            "open": call.is_active(),
        }
        call.cancel()
        return {**answer, **ended(call)}

    def connect(self, command):
        self.out = queue.SimpleQueue()
        method = self.channel.stream_stream(messages.CONNECT)
        self.call = method(iter(self.out.get, None), metadata=metadata(command))
        self.out.put(bytes.fromhex(command.get("first", "")) or messages.descriptor())
        if command.get("refused"):
            self.out.put(None)
            return ended(self.call)
        self.call.initial_metadata()
        return {"open": self.call.is_active()}

    def cancel(self, _):
        self.call.cancel()
        self.out.put(None)
        return ended(self.call)

    def serve(self, command):
        """Answers one request with `times` pieces of `piece`; says what was asked."""
        body, asked = b"", {}
        for received in self.call:
            kind, content = messages.only(received)
            if kind == 1:
                asked["method"] = messages.value(content, 1).decode()
            elif kind == 3:
                break
            else:
                part, content = messages.only(messages.value(content, 1))
                if part == 1:
                    request = messages.value(content, 1)
                    asked["verb"] = messages.value(request, 1).decode()
                    asked["path"] = messages.value(request, 3).decode()
                elif part == 2:
                    body += messages.value(content, 1)
        answer = [messages.HEADER, messages.http_header(200, "200 OK")]
        answer += [messages.http_data(command["piece"].encode())] * command["times"]
        answer += [messages.HTTP_TRAILER, messages.TRAILER, None]
        for message in answer:
            self.out.put(message)
        try:
            rest = sum(1 for _ in self.call)
        except grpc.RpcError:
            rest = -1
        return {**asked, "body": body.decode(), "rest": rest, **ended(self.call)}


def main():
    agent = Agent()
    for line in sys.stdin:
        command = json.loads(line)
        print(json.dumps(getattr(agent, command["do"])(command)), flush=True)


main()
