// What llama.cpp makes of a GGUF file, by node-llama-cpp: `node llama.mjs FOLDER_OF_NODE_MODULES MODEL.gguf ASKED.json OUT.json`.
//
// ASKED has `ids`, tokens of a text, `prompt`, `begin`, tokens before it, and `n_tokens`. OUT gets `next`, log-probabilities of each of the ids after those
// before it; `prompt_ids`; `greedy`, the likeliest tokens after the prompt, and `text`, what they say.

import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, modelPath, asked, out] = process.argv.slice(2);
const { getLlama, LlamaLogLevel } = await import(
    pathToFileURL(createRequire(modules + "/").resolve("node-llama-cpp")).href
);
const { ids, prompt, begin, n_tokens } = JSON.parse(readFileSync(asked, "utf8"));

const llama = await getLlama({ gpu: false, maxThreads: 1, build: "never", progressLogs: false, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath });
// In f32, as everything else here is.
const cache = { experimentalKvCacheKeyType: "F32", experimentalKvCacheValueType: "F32" };
const context = await model.createContext({ contextSize: 512, sequences: 1, threads: 1, flashAttention: false, ...cache });
const sequence = context.getSequence();
// The whole distribution as it is.
const plain = { temperature: 1, topK: 0, topP: 1, minP: 0 };

const places = await sequence.controlledEvaluate(
    ids.slice(0, -1).map((id) => [id, { generateNext: { probabilities: true, options: plain } }]),
);
const next = places.map((place, idx) => Math.log(place.next.probabilities.get(ids[idx + 1]) ?? 0));

await sequence.clearHistory();
// As minitron continues a text: with the tokens that its tokenizer puts before it.
const prompt_ids = [...begin, ...model.tokenize(prompt)];
const greedy = [];
for await (const token of sequence.evaluate(prompt_ids, { temperature: 0, yieldEogToken: true })) {
    greedy.push(token);
    if (greedy.length === n_tokens) break;
}
writeFileSync(out, JSON.stringify({ next, prompt_ids, greedy, text: model.detokenize(greedy) }));
await llama.dispose();
