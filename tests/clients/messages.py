"""Protobuf messages of the agent's wire by field number: read and written without generated code."""


def varint(number):
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(number, value):
    """One field: an integer, or bytes, text or a message that is bytes already."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(value)) + value


def fields(data):
    """All fields of a message as (number, integer or bytes)."""

    def number():
        nonlocal at
        value = shift = 0
        while True:
            value |= (data[at] & 0x7F) << shift
            shift += 7
            at += 1
            if data[at - 1] < 0x80:
                return value

    found, at = [], 0
    while at < len(data):
        key = number()
        if key & 7 == 0:
            found.append((key >> 3, number()))
        elif key & 7 == 2:
            length = number()
            found.append((key >> 3, data[at : at + length]))
            at += length
        else:
            raise ValueError(f"wire type {key & 7}")
    return found


def only(data):
    """The one field of a message that is a choice."""
    (one,) = fields(data)
    return one


def value(data, number, otherwise=b""):
    """The last value of a field."""
    return dict(fields(data)).get(number, otherwise)


REGISTER = "/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register"
GET_CONFIGURATION = "/gitlab.agent.agent_configuration.rpc.AgentConfiguration/GetConfiguration"
CONNECT = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect"
UNKNOWN = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Disconnect"


def agent_meta(pod_name):
    return field(1, "v17.0.0") + field(2, "abcdef") + field(3, "elsewhere") + field(4, pod_name)


def register(pod_name):
    return field(1, agent_meta(pod_name)) + field(2, 4711)


def configuration_request(pod_name):
    return field(2, agent_meta(pod_name))


def descriptor():
    service = field(1, "gitlab.agent.kubernetes_api.rpc.KubernetesApi") + field(2, field(1, "MakeRequest"))
    return field(1, field(1, field(1, service)))


def tunnelled(message):
    """A message of the request that the tunnel carries."""
    return field(3, field(1, message))


def http_header(status, text):
    values = field(1, "Content-Type") + field(2, field(1, "text/plain"))
    response = field(1, status) + field(2, text) + field(3, values)
    return tunnelled(field(1, field(1, response)))


def http_data(data):
    return tunnelled(field(2, field(1, data)))


HTTP_TRAILER = tunnelled(field(3, b""))
HEADER = field(2, b"")
TRAILER = field(4, b"")
