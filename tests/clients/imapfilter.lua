-- imapfilter: every message of INBOX into OUT, one message into Sent.
options.timeout = 120
options.create = true
options.certificates = false
options.starttls = false

account = IMAP {
    server = os.getenv('HOST'), port = tonumber(os.getenv('PORT')),
    username = os.getenv('MAILUSER'), password = 'pass',
}

for index, item in ipairs(account.INBOX:select_all()) do
    local mailbox, uid = table.unpack(item)
    local file = assert(io.open(os.getenv('OUT') .. '/' .. uid, 'wb'))
    file:write(mailbox[uid]:fetch_message())
    file:close()
end
local file = assert(io.open(os.getenv('MESSAGE'), 'rb'))
assert(account.Sent:append_message(file:read('*a')))
file:close()
