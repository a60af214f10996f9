// The model, off the page's thread: loads what lies beside the page and answers, a token at a time.
// in: {start: {device, session, template}} | {ask: messages} | {stop: true}    out: {loaded, total} | {ready} | {piece} | {done} | {failed}
import {
  AutoModelForCausalLM, AutoTokenizer, InterruptableStoppingCriteria, TextStreamer, env,
} from "./transformers.min.js";

const ANSWER_TOKENS = 1024;
const folder = ".."; // of this file

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.useBrowserCache = false; // files of one's own server; a copy would outlive them
env.backends.onnx.wasm.wasmPaths = new URL("./", import.meta.url).href;

// With subgroups ONNX Runtime's attention passes over keys on some GPUs (llamagen explain LG727), without it does on none.
if (globalThis.GPUAdapter) {
  const { get } = Object.getOwnPropertyDescriptor(GPUAdapter.prototype, "features");
  const features = function () {
    return new Set([...get.call(this)].filter((name) => !name.startsWith("subgroup")));
  };
  Object.defineProperty(GPUAdapter.prototype, "features", { get: features });
}

const stopping = new InterruptableStoppingCriteria();
let settings, tokenizer, model;

async function load(device, session) {
  const files = {};
  const progress_callback = ({ status, file, loaded, total }) => {
    if (status !== "progress") return;
    files[file] = { loaded, total };
    const sum = (key) => Object.values(files).reduce((all, one) => all + (one[key] ?? 0), 0);
    postMessage({ loaded: sum("loaded"), total: sum("total") });
  };
  const session_options = device === "wasm" ? { extra: session } : {};
  model = await AutoModelForCausalLM.from_pretrained(folder, { subfolder: "", device, session_options, progress_callback });
  // a turn of the event loop before each step, or the word to stop would wait for the answer's end
  const step = model.forward.bind(model);
  model.forward = async (inputs) => {
    await new Promise((resolve) => {
      const turn = new MessageChannel();
      turn.port1.onmessage = resolve;
      turn.port2.postMessage(null);
    });
    return step(inputs);
  };
  // compiles the GPU's kernels, and shows whether it has one for each operator
  const { input_ids } = tokenizer("a");
  await model.generate({ inputs: input_ids, max_new_tokens: 1, do_sample: false });
}

// a server's page for what is not there is no file of the model
async function fetched(name, options) {
  const answer = await fetch("../" + name, options);
  if (!answer.ok) throw new Error(`${name} is not beside the page (${answer.status})`);
  return answer;
}

// a file that is not there may end a load in transformers.js without ending the promise of it
async function everythingIsThere() {
  const parts = settings["transformers.js_config"]?.use_external_data_format ?? 0;
  const count = typeof parts === "object" ? Math.max(0, ...Object.values(parts).map(Number)) : Number(parts);
  const data = Array.from({ length: count }, (_, i) => "model.onnx_data" + (i ? `_${i}` : ""));
  for (const name of ["tokenizer.json", "tokenizer_config.json", "model.onnx", ...data])
    await fetched(name, { method: "HEAD", cache: "no-store" });
}

async function start({ device: asked, session, template }) {
  settings = await (await fetched("config.json")).json();
  await everythingIsThere();
  tokenizer = await AutoTokenizer.from_pretrained(folder);
  // transformers.js looks for one in tokenizer_config.json alone
  if (template) tokenizer.chat_template = await (await fetched(template)).text();
  let reason = asked === "wasm" ? "" : "this browser offers none";
  if (asked !== "wasm" && (await navigator.gpu?.requestAdapter().catch(() => null))) {
    try {
      await load("webgpu", session);
      return { device: "webgpu" };
    } catch (error) {
      if (asked === "webgpu") throw error;
      reason = String(error?.message ?? error);
    }
  } else if (asked === "webgpu") throw new Error("WebGPU: " + reason);
  await load("wasm", session);
  return { device: "wasm", reason };
}

function prompt(messages) {
  if (tokenizer.chat_template)
    return tokenizer.apply_chat_template(messages, { add_generation_prompt: true, return_dict: true });
  return tokenizer(messages.at(-1).content);
}

async function answer(messages) {
  stopping.reset();
  const inputs = prompt(messages);
  const read = inputs.input_ids.dims.at(-1);
  const room = (settings.max_position_embeddings ?? Infinity) - read;
  if (room < 1) throw new Error(`The conversation has ${read} tokens, more than the model reads. Start a new one.`);
  let tokens = 0, first;
  const streamer = new TextStreamer(tokenizer, {
    skip_prompt: true,
    skip_special_tokens: true,
    callback_function: (piece) => postMessage({ piece }),
    token_callback_function: () => { tokens += 1; first ??= performance.now(); },
  });
  const begun = performance.now();
  const ids = await model.generate({
    ...inputs,
    max_new_tokens: Math.min(ANSWER_TOKENS, room),
    do_sample: false,
    streamer,
    stopping_criteria: stopping,
  });
  const end = performance.now();
  return {
    tokens,
    read,
    ids: ids.tolist()[0].slice(read).map(Number),
    waited: ((first ?? end) - begun) / 1000,
    seconds: (end - (first ?? end)) / 1000,
    stopped: stopping.interrupted,
  };
}

onmessage = async ({ data }) => {
  try {
    if (data.start) postMessage({ ready: { ...(await start(data.start)), chat: !!tokenizer.chat_template } });
    else if (data.stop) stopping.interrupt();
    else postMessage({ done: await answer(data.ask) });
  } catch (error) {
    postMessage({ failed: String(error?.message ?? error) });
  }
};
// a file that is not there ends a load in transformers.js without ending the promise of it
addEventListener("unhandledrejection", ({ reason }) => postMessage({ failed: String(reason?.message ?? reason) }));
postMessage({ awake: true });
