// A client with the types that are generated from the OpenAPI document.
import createClient from "openapi-fetch";
import type { components, paths } from "./schema.js";

type Flow = components["schemas"]["Flow"];
type Execution = components["schemas"]["Execution"];
type ExecutionOutline = components["schemas"]["ExecutionOutline"];
type StepOutline = components["schemas"]["StepOutline"];
type ApiError = components["schemas"]["ApiError"];

const api = createClient<paths>({ baseUrl: "http://localhost:8000" });

function fail(error: ApiError): never {
  throw new Error(`${error.code}: ${error.detail} (${error.requestId})`);
}

export async function createAndStart(name: string): Promise<Flow> {
  const created = await api.POST("/api/v1/flows", { body: { name, description: null } });
  if (created.error) fail(created.error);
  const path = { flow_id: created.data.id };
  const changed = await api.PATCH("/api/v1/flows/{flow_id}", { params: { path }, body: { canvasState: null } });
  if (changed.error) fail(changed.error);
  const started = await api.POST("/api/v1/flows/{flow_id}/start", { params: { path } });
  if (started.error) fail(started.error);
  return started.data;
}

export async function firstNames(): Promise<string[]> {
  const { data, error } = await api.GET("/api/v1/flows", { params: { query: { page: 1, page_size: 50 } } });
  if (error) fail(error);
  const status: "stopped" | "starting" | "running" | "stopping" | "error" | undefined = data.items[0]?.status;
  return data.items.map((flow) => `${flow.name} ${flow.updatedAt} ${status ?? ""}`);
}

export async function hook(flow_id: string): Promise<string | null> {
  const { data, error } = await api.POST("/api/v1/flows/{flow_id}/triggers", {
    params: { path: { flow_id } },
    body: { type: "schedule", name: "Mornings", config: { cron: "0 9 * * 1-5", timezone: "Europe/Berlin" } },
  });
  if (error) fail(error);
  return data.webhookUrl;
}

export async function run(flow_id: string): Promise<Execution> {
  const { data, error } = await api.POST("/api/v1/flows/{flow_id}/executions/run", {
    params: { path: { flow_id } },
    body: { inputPayload: { name: "Ada" } },
  });
  if (error) fail(error);
  const text: string | null = data.outputPayload;
  const duration: number | null = data.durationMs;
  return { ...data, outputPayload: text, durationMs: duration };
}

export async function runToTheEnd(flow_id: string): Promise<string | null> {
  const { data, error, response } = await api.POST("/api/v1/flows/{flow_id}/executions/run", {
    params: { path: { flow_id }, query: { wait: 30 } },
  });
  if (error) fail(error);
  if (response.status === 202) return null;
  return data.outputPayload ?? data.errorMessage;
}

export async function retryFromWhereItFailed(flow_id: string, execution_id: string): Promise<string[]> {
  const path = { flow_id, execution_id };
  const again = await api.POST("/api/v1/flows/{flow_id}/executions/{execution_id}/retry", {
    params: { path, query: { from: "failed", version: "latest" } },
  });
  if (again.error) fail(again.error);
  const { data, error } = await api.GET("/api/v1/flows/{flow_id}/executions/{execution_id}/steps", { params: { path } });
  if (error) fail(error);
  return data.items.filter((step) => step.copied).map((step) => `${step.listener} ${step.resumesAt ?? ""}`);
}

export function follow(url: string, show: (text: string) => void): EventSource {
  const source = new EventSource(url);
  source.addEventListener("step", (event: MessageEvent<string>) => {
    const step = JSON.parse(event.data) as StepOutline;
    const kind: components["schemas"]["StepEvent"]["event"] = "step";
    show(`${kind} ${step.listener} ${step.status} ${step.errorMessage ?? ""}`);
  });
  source.addEventListener("agent.text", (event: MessageEvent<string>) => {
    const part = JSON.parse(event.data) as components["schemas"]["AgentText"];
    const kind: components["schemas"]["AgentTextEvent"]["event"] = "agent.text";
    show(part.offset === 0 ? `${kind} ${part.listener}: ${part.text}` : part.text);
  });
  source.addEventListener("execution", (event: MessageEvent<string>) => {
    const execution = JSON.parse(event.data) as ExecutionOutline;
    const end: components["schemas"]["ExecutionEvent"]["id"] = "end";
    if (event.lastEventId === end) source.close();
    show(execution.status);
  });
  return source;
}

// @ts-expect-error: Flow has no such member
export type Missing = Flow["organism"];
// @ts-expect-error: the name is a string
export const wrong: components["schemas"]["CreateFlowRequest"] = { name: 5 };
