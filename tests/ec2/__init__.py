"""The EC2 provider on moto's server, with what that lacks added by an emulating proxy before it."""
