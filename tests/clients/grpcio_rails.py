"""GitLab Rails, or an agent, on grpcio with stubs that grpcio-tools generates from `wire/proto`. See README.md."""

import base64
import hashlib
import hmac
import importlib
import json
import re
import sys
import tempfile
import time
from pathlib import Path

import grpc
from google.protobuf import json_format, message_factory
from grpc_tools import protoc

PROTOS = Path(sys.argv[1])
OPTIONS = [("grpc.enable_http_proxy", 0)]


def generate(folder):
    """Generates stubs; returns which module serves which service."""
    files = [file for part in ("internal", "pkg", "google") for file in sorted((PROTOS / part).rglob("*.proto"))]
    names = [str(file.relative_to(PROTOS)) for file in files]
    known = Path(protoc.__file__).parent / "_proto"
    flags = [f"-I{PROTOS}", f"-I{known}", f"--python_out={folder}", f"--grpc_python_out={folder}"]
    if protoc.main(["protoc", *flags, *names]) != 0:
        sys.exit("protoc failed")
    sys.path.insert(0, folder)
    services = {}
    for file, name in zip(files, names):
        text = file.read_text()
        package = re.search(r"^package ([\w.]+);", text, re.MULTILINE)
        for service in re.findall(r"^service (\w+)", text, re.MULTILINE):
            services[f"{package[1]}.{service}"] = name.removesuffix(".proto").replace("/", ".")
    return services


def part(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def token(secret, claims, algorithm="HS256", now=None):
    """A JWT. Claims with times are relative to now."""
    now = now or time.time()
    claims = {key: now + value if key in ("iat", "nbf", "exp") else value for key, value in claims.items()}
    document = [part(json.dumps(each).encode()) for each in ({"alg": algorithm, "typ": "JWT"}, claims)]
    signed = ".".join(document)
    if algorithm == "none":
        return f"{signed}."
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    return f"{signed}.{part(hmac.new(base64.b64decode(secret), signed.encode(), digest).digest())}"


def as_json(message):
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


class Client:
    def __init__(self, services):
        self.services = services
        self.channels = {}
        self.kept = []

    def method(self, target, path):
        """The generated method and the class of its request."""
        if target not in self.channels:
            self.channels[target] = grpc.insecure_channel(target, OPTIONS)
        service, name = path.rsplit("/", 1)
        module = self.services[service]
        messages = importlib.import_module(f"{module}_pb2")
        stubs = importlib.import_module(f"{module}_pb2_grpc")
        stub = getattr(stubs, service.rsplit(".", 1)[1] + "Stub")(self.channels[target])
        described = messages.DESCRIPTOR.services_by_name[service.rsplit(".", 1)[1]].methods_by_name[name]
        return getattr(stub, name), described

    def call(self, command):
        """Sends `requests`, reads at most `first` answers, says how it ended; `keep` leaves the stream open."""
        method, described = self.method(command["target"], command["method"])
        make = message_factory.GetMessageClass(described.input_type)
        requests = [json_format.ParseDict(each, make()) for each in command.get("requests", [{}])]
        metadata = [(name, value) for name, value in command.get("metadata", [])]
        if "jwt" in command:
            metadata.append(("authorization", f"Bearer {token(**command['jwt'])}"))
        if "bearer" in command:
            metadata.append(("authorization", f"Bearer {command['bearer']}"))
        began = time.monotonic()
        limit = {"timeout": command.get("deadline", 20), "metadata": metadata}
        answers, call = [], None
        try:
            if not described.server_streaming:
                answer, call = method.with_call(requests[0], **limit)
                answers.append(answer)
            else:
                call = method(iter(requests) if described.client_streaming else requests[0], **limit)
                for answer in call:
                    answers.append(answer)
                    if len(answers) == command.get("first"):
                        if command.get("keep"):
                            self.kept.append(call)
                            return {"code": None, "answers": [as_json(each) for each in answers]}
                        call.cancel()
                        break
        except grpc.RpcError as error:
            call = error
        return {
            "code": call.code().name,
            "details": call.details(),
            "seconds": time.monotonic() - began,
            "answers": [as_json(each) for each in answers],
        }


def main():
    with tempfile.TemporaryDirectory() as folder:
        client = Client(generate(folder))
        print(json.dumps({"services": sorted(client.services)}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            answer = {"jwt": token(**command["sign"])} if "sign" in command else client.call(command)
            print(json.dumps(answer), flush=True)


main()
