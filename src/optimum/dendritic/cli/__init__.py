"""What the commands of `optimum-cli dendritic` do; their arguments are in `optimum/commands/register`."""
