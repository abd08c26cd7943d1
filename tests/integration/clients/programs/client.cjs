// LIBRARY METHOD URL: prints the status that the library was answered.
const [library, method, url] = process.argv.slice(2);
const headers = { "X-Client": library };
if (process.env.API_TOKEN) headers.Authorization = `Bearer ${process.env.API_TOKEN}`;
const found = (name) => require(require.resolve(name, { paths: ["/made"] }));
const asks = {
  fetch: async () => (await fetch(url, { method, headers })).status,
  https: () =>
    new Promise((resolve, reject) =>
      require("node:https")
        .request(url, { method, headers }, (answer) => resolve(answer.resume().statusCode))
        .on("error", reject)
        .end(),
    ),
  undici: async () => (await found("undici").request(url, { method, headers })).statusCode,
  axios: async () =>
    (await found("axios").request({ url, method, headers, validateStatus: () => true })).status,
};
asks[library]().then(console.log, (error) => {
  console.error(error);
  process.exit(1);
});
