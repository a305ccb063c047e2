// Sends what the JSON on standard input says, and prints for each message what nodemailer made of it.
const nodemailer = require("nodemailer");

async function main() {
    const chunks = [];
    for await (const chunk of process.stdin) chunks.push(chunk);
    const { transport, messages } = JSON.parse(Buffer.concat(chunks).toString());
    const sender = nodemailer.createTransport(transport);
    const results = await Promise.allSettled(messages.map((message) => sender.sendMail(message)));
    sender.close();
    const shown = results.map(({ value, reason }) =>
        value
            ? { response: value.response, accepted: value.accepted, rejected: value.rejected }
            : { code: reason.code, status: reason.responseCode, response: reason.response },
    );
    console.log(JSON.stringify(shown));
}

main();
