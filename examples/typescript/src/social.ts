/** The social network that the user feed talks to: the service at SOCIAL_URL, or a stand-in that answers in this process. */

export type Post = { id: string; content: string };
export type Status = "PENDING" | "DONE";

const SOCIAL_URL = process.env.SOCIAL_URL;

export async function createPost(user: string, post: Post): Promise<string> {
  if (!SOCIAL_URL) return crypto.randomUUID();
  const { postId } = await request("POST", "/posts", { user, ...post });
  return postId;
}

export async function getStatus(postId: string): Promise<Status> {
  if (!SOCIAL_URL) return Math.random() < 0.5 ? "PENDING" : "DONE";
  const { status } = await request("GET", `/posts/${encodeURIComponent(postId)}/status`);
  return status;
}

export async function updateFeed(user: string, postId: string): Promise<void> {
  if (!SOCIAL_URL) return console.log(`feed of ${user}: post ${postId}`);
  await request("POST", `/feeds/${encodeURIComponent(user)}`, { postId });
}

async function request(method: string, path: string, body?: object) {
  const response = await fetch(SOCIAL_URL + path, {
    method,
    headers: { "content-type": "application/json" },
    body: body && JSON.stringify(body),
  });
  if (!response.ok) throw new Error(`${method} ${path}: status ${response.status}`);
  return response.json();
}
