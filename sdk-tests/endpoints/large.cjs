// Answers that are too large, or large, beside small ones, on the HTTP/2 server of Node with its defaults.
// Run in the folder of an example, whose packages it takes.

const { createRequire } = require("node:module");
const restate = createRequire(process.cwd() + "/")("@restatedev/restate-sdk");

const large = restate.service({
  name: "Large",
  handlers: {
    answer: async (_, mebibytes) => "x".repeat(mebibytes << 20),
    echo: async (_, value) => value,
  },
});

restate.serve({ services: [large], port: Number(process.env.PORT) });
