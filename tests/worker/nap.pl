# A worker of Gearman in Perl. TERM lets it finish the job at hand: stop_if is asked between two jobs.
use strict;
use warnings;
use Gearman::Worker;
use Time::HiRes qw(sleep);

my $told = 0;
$SIG{TERM} = sub { $told = 1 };
my $worker = Gearman::Worker->new(job_servers => [$ARGV[0]]);
$worker->register_function(nap => sub {
    my ($name, $seconds) = split / /, $_[0]->arg;
    note("$ENV{BEGUN}", $name);
    my $until = Time::HiRes::time() + $seconds;
    while ((my $left = $until - Time::HiRes::time()) > 0) { sleep($left) }    # a signal cuts a sleep short
    note($ENV{LEDGER}, $name);
    return "rested";
});
$worker->work(stop_if => sub { $told }) until $told;

sub note {
    my ($path, $name) = @_;
    open(my $file, '>>', $path) or die "$path: $!";
    syswrite($file, "$name $$\n");
    close($file);
}
