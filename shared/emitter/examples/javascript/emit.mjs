// Emits generations to Steward from plain JavaScript: the `data` of one event a line on the standard input, its id a
// line on the standard output once Kafka has the event. See README.md for what the Python emitter does beyond this.
//
//   npm ci
//   STEWARD_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 node emit.mjs gateway-eu-1 < usage.jsonl

import { randomBytes } from 'node:crypto'
import { createInterface } from 'node:readline'
import { CompressionTypes, Kafka, Partitioners, logLevel } from 'kafkajs'

const TOPIC = 'gateway.generations'
const TYPE = 'generation.completed.v1'
const BATCH = 500

/** A UUIDv7 (RFC 9562): 48 bits of time in milliseconds, the version, and 74 random bits. */
export function uuid7(ms = Date.now()) {
  const bytes = randomBytes(16)
  bytes.writeUIntBE(ms, 0, 6)
  bytes[6] = 0x70 | (bytes[6] & 0x0f)
  bytes[8] = 0x80 | (bytes[8] & 0x3f)
  return bytes.toString('hex').replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, '$1-$2-$3-$4-$5')
}

/**
 * Turns usage into Kafka messages. An emitting instance has a `source` of its own, new at each start, and counts its
 * events on this topic from 1: that is how the mesh sees what never arrived. An id is made once; whoever sends a
 * message again sends the same bytes, and it counts once.
 */
export function numbering(name) {
  const source = `${name}:${Date.now().toString(16)}${randomBytes(3).toString('hex')}`
  let sequence = 0
  return (data) => {
    const id = uuid7()
    sequence += 1
    const event = {
      specversion: '1.0',
      id,
      source,
      type: TYPE,
      subject: data.workspace,
      time: new Date().toISOString(),
      datacontenttype: 'application/json',
      sequence: String(sequence),
      data,
    }
    return {
      key: id, // the contract's key of this topic; KafkaJS places it as every Kafka client does (murmur2)
      value: JSON.stringify(event),
      headers: { 'content-type': 'application/cloudevents+json', ce_source: source, ce_sequence: String(sequence) },
    }
  }
}

async function main(name) {
  const kafka = new Kafka({
    clientId: 'steward-example',
    brokers: process.env.STEWARD_KAFKA_BOOTSTRAP_SERVERS.split(','),
    logLevel: logLevel.ERROR,
    retry: { retries: Number.MAX_SAFE_INTEGER, maxRetryTime: 5_000 }, // a broker that is away is waited for
  })
  const producer = kafka.producer({
    idempotent: true,
    maxInFlightRequests: 1,
    createPartitioner: Partitioners.DefaultPartitioner,
  })
  await producer.connect()
  const message = numbering(name)
  let batch = []
  const send = async () => {
    if (batch.length === 0) return
    await producer.send({ topic: TOPIC, acks: -1, compression: CompressionTypes.GZIP, messages: batch })
    process.stdout.write(batch.map(({ key }) => `${key}\n`).join(''))
    batch = []
  }
  for await (const line of createInterface({ input: process.stdin })) {
    batch.push(message(JSON.parse(line)))
    if (batch.length === BATCH) await send()
  }
  await send()
  await producer.disconnect()
}

await main(process.argv[2] ?? 'gateway-js')
