# Mail::IMAPClient: every message of INBOX into OUT, one message into Sent.
use strict;
use warnings;
use Mail::IMAPClient;

my ($host, $port, $user, $out, $message) = @ARGV;
my $client = Mail::IMAPClient->new(
    Server => $host, Port => $port, User => $user, Password => 'pass',
    Uid => 1, Timeout => 120,
) or die "connect: $@\n";
$client->examine('INBOX') or die 'EXAMINE: ' . $client->LastError . "\n";
my $uids = $client->search('ALL') or die 'SEARCH: ' . ($client->LastError // '') . "\n";
for my $uid (@$uids) {
    $client->message_to_file("$out/$uid", $uid) or die 'FETCH: ' . $client->LastError . "\n";
}
open my $file, '<:raw', $message or die "$message: $!\n";
local $/;
$client->append_string('Sent', scalar <$file>) or die 'APPEND: ' . $client->LastError . "\n";
$client->logout;
