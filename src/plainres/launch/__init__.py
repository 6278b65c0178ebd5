"""Many runs, and the processes of one."""
