"""What commands have in common before there is anything to show: options, the run itself, logging."""
