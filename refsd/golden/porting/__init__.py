"""What porters take along: contracts, exports, and the kit."""
