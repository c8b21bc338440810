export * from "./loop.ts";
export * from "./net.ts";
