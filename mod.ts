/**
 * An event loop you can read, watch and trust: coroutines are generators that yield what they wait for as plain data, and
 * a loop of a few lines moves them between `ready` and a selector. On that are built structured concurrency, sockets and
 * streams.
 *
 * ```ts
 * import { Loop, sleep, taskGroup } from "@yieldloop/yieldloop";
 *
 * function* tick(name: string, ms: number) {
 *   for (let i = 0; i < 3; i++) {
 *     yield* sleep(ms);
 *     console.log(name, i);
 *   }
 * }
 *
 * await new Loop().run(taskGroup(function* (group) {
 *   group.createTask(tick("fast", 1));
 *   group.createTask(tick("slow", 2));
 * }));
 * ```
 *
 * The kernel is in `loop.ts`; read that first.
 *
 * @module
 */

export {
  type Addr,
  BusyError,
  call,
  Cancelled,
  CancelScope,
  cancelScope,
  type CancelScopeOptions,
  checkpoint,
  type Clock,
  ClosedError,
  type Coroutine,
  currentTask,
  type DatagramLike,
  DeadlockError,
  type Deque,
  EVENT_READ,
  EVENT_WRITE,
  type ListenerLike,
  Loop,
  type LoopOptions,
  type Network,
  type Op,
  type OpHandler,
  park,
  ParkingLot,
  readWait,
  runningLoop,
  type Selectable,
  type Selector,
  type SelectorKey,
  sleep,
  type SocketLike,
  Task,
  TaskError,
  TaskLocal,
  type TaskOptions,
  TimeoutError,
  type TraceEvent,
  until,
  WouldBlock,
  writeWait,
} from "./loop.ts";
export {
  all,
  failAfter,
  moveOnAfter,
  race,
  type Results,
  shield,
  type ShieldOptions,
  TaskGroup,
  taskGroup,
} from "./scope.ts";
export {
  Condition,
  Event,
  LifoQueue,
  Lock,
  PriorityQueue,
  Queue,
  type QueueItems,
  Semaphore,
  type SemaphoreOptions,
} from "./sync.ts";
export {
  IncompleteReadError,
  LimitError,
  serve,
  type ServeListener,
  type ServeOptions,
  Stream,
  type StreamOptions,
  type StreamSocket,
} from "./stream.ts";
export {
  connect,
  type Connection,
  type ConnectionListener,
  type ConnectOptions,
  connectTls,
  type ConnectTlsOptions,
  datagram,
  type DatagramConnection,
  type DatagramOptions,
  DatagramSocket,
  DefaultSelector,
  listen,
  Listener,
  type ListenOptions,
  listenTls,
  type ListenTlsOptions,
  Pollable,
  Socket,
  socketPair,
  startTls,
  type StartTlsOptions,
  type TlsHandshakeInfo,
} from "./net.ts";
export {
  runInWorker,
  signal,
  SignalQueue,
  WorkerPool,
  type WorkerPoolOptions,
  type WorkerRunOptions,
} from "./process.ts";
