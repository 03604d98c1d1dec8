-- wake_leaders: there is work; a leader that is awake is not told, it looks by itself.
select dispatcher.wake_leaders()
