/**
 * tests/pieces.ts: a socket in memory that gives its bytes in the pieces a test chose, for a loop in a simulated world.
 */
import { type Coroutine, EVENT_READ, EVENT_WRITE, type StreamSocket } from "../mod.ts";
import { bytes, FakeSocket, text } from "./world.ts";

/** Its peer is the test: it feeds pieces, ends or breaks the stream, and looks at what was written. */
export class PieceSocket extends FakeSocket implements StreamSocket {
  readonly written: Uint8Array[] = [];
  /** How many bytes it takes at a time; 0 for a peer that does not read. */
  room = Infinity;
  closed = false;
  aborted = false;
  writeEnded = false;
  #pieces: (Uint8Array | Error)[] = [];
  #ended = false;

  constructor(...pieces: (Uint8Array | string)[]) {
    super();
    this.ready = EVENT_WRITE;
    this.feed(...pieces);
  }

  /** Each piece arrives on its own. */
  feed(...pieces: (Uint8Array | string)[]): this {
    for (const piece of pieces) this.#pieces.push(typeof piece === "string" ? bytes(piece) : piece);
    if (pieces.length > 0) this.ready |= EVENT_READ;
    return this;
  }

  /** The stream ends behind what was fed. */
  end(): this {
    this.#ended = true;
    this.ready |= EVENT_READ;
    return this;
  }

  /** The next read fails. */
  breakWith(error: Error): this {
    this.#pieces.push(error);
    this.ready |= EVENT_READ;
    return this;
  }

  recv(maxBytes: number): Uint8Array {
    const piece = this.#pieces.shift();
    if (piece instanceof Error) throw piece;
    if (!piece) {
      if (!this.#ended) throw new Error("recv was called though nothing has arrived");
      return new Uint8Array(0);
    }
    if (piece.length > maxBytes) this.#pieces.unshift(piece.subarray(maxBytes));
    if (this.#pieces.length === 0 && !this.#ended) this.ready &= ~EVENT_READ;
    return piece.subarray(0, maxBytes);
  }

  recvInto(buffer: Uint8Array): number {
    const data = this.recv(buffer.length);
    buffer.set(data);
    return data.length;
  }

  send(data: Uint8Array): number {
    const taken = data.slice(0, this.room);
    this.written.push(taken);
    return taken.length;
  }

  *closeWrite(): Coroutine<void> {
    this.writeEnded = true;
  }

  close(): void {
    this.closed = true;
  }

  abort(): void {
    this.aborted = true;
    this.close();
  }

  /** What was written, as text. */
  get output(): string {
    return this.written.map((data) => text(data)).join("");
  }
}
