"""What processes wrote, kept: in memory first, then in files, replayable from any byte.

    append -> ring (memory) -> files (segments of compressed, checksummed records)
                 \\                 /
                  follower, follower, ...      each at its own place, none holds another up

A stream's bytes are numbered from 0, whatever was lost: a cursor is the number of the next byte.
What cannot be had any more is told as a Gap, with where, how much and why.
"""
