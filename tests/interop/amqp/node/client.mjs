// amqplib, as an application uses it. Prints one JSON object: what it has seen.
//
//   node client.mjs converse|refusal|idle|blocked URL [CA-FILE]
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { setTimeout as sleep } from "node:timers/promises";

const [, , scenario, url, authority] = process.argv;
const amqp = createRequire(`${process.cwd()}/`)("amqplib");
const options = authority ? { ca: [readFileSync(authority)] } : {};
const large = Buffer.alloc(20_000_000, "0123456789abcdef");

const digest = (body) => createHash("sha256").update(body).digest("hex");
const connect = (more = "") => amqp.connect(url + more, options);

async function converse() {
  const seen = {};
  const connection = await connect();
  const { frameMax, channelMax, heartbeat } = connection.connection;
  seen.tuned = { frameMax, channelMax, heartbeat };

  const channel = await connection.createConfirmChannel();
  await channel.assertQueue("node", { durable: true, arguments: { "x-max-priority": 3 } });
  const returned = [];
  channel.on("return", (message) => returned.push(message.fields.replyText));
  const properties = { persistent: true, priority: 2, headers: { n: 1, deep: { list: [1, "a"] } } };
  for (const body of [Buffer.alloc(0), Buffer.from("tiny"), large]) {
    channel.publish("", "node", body, properties);
  }
  channel.publish("", "nowhere", Buffer.from("nobody"), { mandatory: true });
  await channel.waitForConfirms();
  seen.returned = returned;

  seen.messages = [];
  await channel.prefetch(1);
  await new Promise((resolve, reject) => {
    channel.on("error", reject);
    const take = (message) => {
      const { headers, priority, deliveryMode } = message.properties;
      seen.messages.push([digest(message.content), headers, priority, deliveryMode]);
      channel.ack(message);
      if (seen.messages.length === 3) resolve();
    };
    channel.consume("node", take, { consumerTag: "taker" });
  });
  await channel.cancel("taker");

  const broken = await connection.createChannel();
  const error = new Promise((resolve) => broken.on("error", resolve));
  broken.checkQueue("missing").catch(() => {});
  seen.missing = (await error).code;

  await channel.deleteQueue("node");
  await channel.close();
  await connection.close();
  return seen;
}

async function refusal() {
  try {
    await connect();
    return { connected: true };
  } catch (error) {
    return { name: error.name, message: error.message };
  }
}

async function idle() {
  const connection = await connect("?heartbeat=1");
  await sleep(4000);
  const channel = await connection.createChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  await connection.close();
  return { heartbeat: connection.connection.heartbeat, usable: queue.startsWith("amq.gen-") };
}

async function blocked() {
  const connection = await connect();
  const told = [];
  const unblocked = new Promise((resolve) => connection.on("unblocked", resolve));
  connection.on("blocked", (reason) => {
    told.push(reason);
    process.stderr.write("blocked\n");
  });
  const channel = await connection.createConfirmChannel();
  const { queue } = await channel.assertQueue("", { exclusive: true });
  channel.sendToQueue(queue, Buffer.from("later"));
  await unblocked;
  await channel.waitForConfirms();
  await connection.close();
  return { told, confirmed: true };
}

const scenarios = { converse, refusal, idle, blocked };
console.log(JSON.stringify(await scenarios[scenario]()));
