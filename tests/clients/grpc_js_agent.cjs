// An agent on @grpc/grpc-js. Commands come as JSON lines, answers go as JSON lines; see README.md.
'use strict';

const fs = require('node:fs');
const readline = require('node:readline');
const grpc = require('@grpc/grpc-js');
const messages = require('./messages.cjs');

const setup = JSON.parse(process.argv[2]);
const GZIP = 2;

const same = (bytes) => bytes;
const method = (path, requestStream, responseStream) => ({
  path,
  requestStream,
  responseStream,
  requestSerialize: same,
  requestDeserialize: same,
  responseSerialize: same,
  responseDeserialize: same,
});
const TUNNEL = '/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel';
const Agent = grpc.makeGenericClientConstructor(
  {
    register: method('/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register', false, false),
    unknown: method(`${TUNNEL}/Disconnect`, false, false),
    configuration: method(
      '/gitlab.agent.agent_configuration.rpc.AgentConfiguration/GetConfiguration',
      false,
      true,
    ),
    connect: method(`${TUNNEL}/Connect`, true, true),
  },
  'Agent',
);

const credentials = setup.ca
  ? grpc.credentials.createSsl(fs.readFileSync(setup.ca))
  : grpc.credentials.createInsecure();
const options = { 'grpc.enable_http_proxy': 0 };
if (setup.gzip) options['grpc.default_compression_algorithm'] = GZIP;
if (setup.authority) options['grpc.default_authority'] = setup.authority;
const client = new Agent(setup.target, credentials, options);

function metadata(command) {
  const metadata = new grpc.Metadata();
  const token = 'token' in command ? command.token : setup.token;
  if (token) metadata.set('authorization', `Bearer ${token}`);
  return metadata;
}

const ended = (status) => ({ code: status.code, details: status.details });

function unary(name, command) {
  return new Promise((resolve) => {
    const pod = command.pod ?? 'p';
    const deadline = { deadline: Date.now() + 20_000 };
    let bytes;
    const call = client[name](messages.register(pod), metadata(command), deadline, (error, answer) => {
      bytes = answer?.length;
    });
    call.on('status', (status) => setImmediate(() => resolve({ ...ended(status), bytes })));
  });
}

// One stream of messages and its end, to be awaited one at a time.
class Call {
  constructor(stream) {
    this.stream = stream;
    this.messages = stream[Symbol.asyncIterator]();
    this.status = new Promise((resolve) => stream.on('status', resolve));
    // The status says it all.
    stream.on('error', () => {});
    this.open = new Promise((resolve) => stream.on('metadata', () => resolve(true)));
  }

  // The next message, or undefined at the end.
  async next() {
    try {
      return (await this.messages.next()).value;
    } catch {
      return undefined;
    }
  }
}

let tunnel;

const commands = {
  register: (command) => unary('register', command),
  unknown: (command) => unary('unknown', command),

  async configuration(command) {
    const request = messages.configurationRequest(command.pod ?? 'p');
    const call = new Call(client.configuration(request, metadata(command)));
    const first = await call.next();
    if (!first) return ended(await call.status);
    const open = await Promise.race([call.status.then(() => false), Promise.resolve(true)]);
    call.stream.cancel();
    return {
      commit: messages.value(first, 2).toString(),
      agent: messages.value(messages.value(first, 1), 4, 0),
      open,
      ...ended(await call.status),
    };
  },

  async connect(command) {
    tunnel = new Call(client.connect(metadata(command)));
    tunnel.stream.write(command.first ? Buffer.from(command.first, 'hex') : messages.descriptor());
    if (command.refused) return ended(await tunnel.status);
    return { open: await Promise.race([tunnel.open, tunnel.status.then(() => false)]) };
  },

  async cancel() {
    tunnel.stream.cancel();
    return ended(await tunnel.status);
  },

  // Answers one request with `times` pieces of `piece`; says what was asked.
  async serve(command) {
    const asked = {};
    let body = '';
    for (;;) {
      const received = await tunnel.next();
      if (!received) return ended(await tunnel.status);
      const [kind, content] = messages.only(received);
      if (kind === 3) break;
      if (kind === 1) {
        asked.method = messages.value(content, 1).toString();
        continue;
      }
      const [part, inner] = messages.only(messages.value(content, 1));
      if (part === 1) {
        const request = messages.value(inner, 1);
        asked.verb = messages.value(request, 1).toString();
        asked.path = messages.value(request, 3).toString();
      } else if (part === 2) {
        body += messages.value(inner, 1).toString();
      }
    }
    const { stream } = tunnel;
    stream.write(messages.HEADER);
    stream.write(messages.httpHeader(200, '200 OK'));
    for (let turn = 0; turn < command.times; turn++) stream.write(messages.httpData(command.piece));
    stream.write(messages.HTTP_TRAILER);
    stream.write(messages.TRAILER);
    stream.end();
    let rest = 0;
    while (await tunnel.next()) rest++;
    return { ...asked, body, rest, ...ended(await tunnel.status) };
  },
};

(async () => {
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const command = JSON.parse(line);
    console.log(JSON.stringify(await commands[command.do](command)));
  }
  process.exit(0);
})();
