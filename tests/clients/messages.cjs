// Protobuf messages of the agent's wire by field number: read and written without generated code.
'use strict';

function varint(number) {
  const out = [];
  for (; number > 0x7f; number >>>= 7) out.push((number & 0x7f) | 0x80);
  out.push(number);
  return Buffer.from(out);
}

// One field: an integer, or bytes, text or a message that is bytes already.
function field(number, value) {
  if (typeof value === 'number') return Buffer.concat([varint(number << 3), varint(value)]);
  const bytes = Buffer.from(value);
  return Buffer.concat([varint((number << 3) | 2), varint(bytes.length), bytes]);
}

// All fields of a message as [number, integer or bytes].
function fields(data) {
  let at = 0;
  function number() {
    let value = 0;
    for (let shift = 1; ; shift *= 128) {
      const byte = data[at++];
      value += (byte & 0x7f) * shift;
      if (byte < 0x80) return value;
    }
  }
  const found = [];
  while (at < data.length) {
    const key = number();
    if ((key & 7) === 0) {
      found.push([key >> 3, number()]);
    } else if ((key & 7) === 2) {
      const length = number();
      found.push([key >> 3, data.subarray(at, at + length)]);
      at += length;
    } else {
      throw new Error(`wire type ${key & 7}`);
    }
  }
  return found;
}

// The one field of a message that is a choice.
function only(data) {
  const found = fields(data);
  if (found.length !== 1) throw new Error(`${found.length} fields in a choice`);
  return found[0];
}

// The last value of a field.
function value(data, number, otherwise = Buffer.alloc(0)) {
  return new Map(fields(data)).get(number) ?? otherwise;
}

function agentMeta(pod) {
  return Buffer.concat([field(1, 'v17.0.0'), field(2, 'abcdef'), field(3, 'elsewhere'), field(4, pod)]);
}

// A message of the request that the tunnel carries.
const tunnelled = (message) => field(3, field(1, message));

function httpHeader(status, text) {
  const type = Buffer.concat([field(1, 'Content-Type'), field(2, field(1, 'text/plain'))]);
  const response = Buffer.concat([field(1, status), field(2, text), field(3, type)]);
  return tunnelled(field(1, field(1, response)));
}

function descriptor() {
  const method = field(2, field(1, 'MakeRequest'));
  const service = Buffer.concat([field(1, 'gitlab.agent.kubernetes_api.rpc.KubernetesApi'), method]);
  return field(1, field(1, field(1, service)));
}

module.exports = {
  only,
  value,
  descriptor,
  httpHeader,
  register: (pod) => Buffer.concat([field(1, agentMeta(pod)), field(2, 4711)]),
  configurationRequest: (pod) => field(2, agentMeta(pod)),
  httpData: (data) => tunnelled(field(2, field(1, data))),
  HTTP_TRAILER: tunnelled(field(3, '')),
  HEADER: field(2, ''),
  TRAILER: field(4, ''),
};
