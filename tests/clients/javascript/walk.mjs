// A chat call, a stream and a refused call as @azure-rest/ai-inference makes them; says as JSON what its caller saw.
import createClient, { isUnexpected } from "@azure-rest/ai-inference";
import { AzureKeyCredential } from "@azure/core-auth";
import { createSseStream } from "@azure/core-sse";

const [url, key] = process.argv.slice(2);
const client = createClient(url, new AzureKeyCredential(key), { allowInsecureConnection: true, retryOptions: { maxRetries: 0 } });
const body = (content, more = {}) => ({ body: { messages: [{ role: "user", content }], max_tokens: 20, ...more }, headers: { "extra-parameters": "pass-through" } });

const whole = await client.path("/chat/completions").post(body("hello"));
if (isUnexpected(whole)) throw new Error(`status ${whole.status}`);

const streamed = await client.path("/chat/completions").post(body("hello", { stream: true })).asNodeStream();
let text = "";
for await (const event of createSseStream(streamed.body)) {
  if (event.data === "[DONE]") break;
  for (const choice of JSON.parse(event.data).choices) text += choice.delta?.content ?? "";
}

const refused = await client.path("/chat/completions").post(body("THROTTLE"));
const info = await client.path("/info").get();

console.log(JSON.stringify({ whole: whole.body.choices[0].message.content, text, refused: refused.status, info: info.body.model_name }));
