// imapflow: every message of INBOX into OUT, one message into Sent.
import { readFile, writeFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { join } from 'node:path';

const { ImapFlow } = createRequire(join(process.cwd(), 'x.js'))('imapflow');
const [host, port, user, out, message] = process.argv.slice(2);
const client = new ImapFlow({
    host, port: Number(port), secure: false, doSTARTTLS: false,
    auth: { user, pass: 'pass' }, logger: false, socketTimeout: 120000,
});
await client.connect();
const lock = await client.getMailboxLock('INBOX', { readOnly: true });
try {
    for await (const mail of client.fetch('1:*', { source: true }, { uid: true }))
        await writeFile(join(out, String(mail.uid)), mail.source);
} finally {
    lock.release();
}
const saved = await client.append('Sent', await readFile(message));
if (!saved) throw new Error('APPEND failed');
await client.logout();
