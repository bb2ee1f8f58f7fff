cp -r nano /tmp/src; cd /tmp/src; export PYTHONUNBUFFERED=1
setsid nohup python3 train.py --run /tmp/run --minutes 17 > /tmp/train.log 2>&1 &
sleep 45; tail -n 3 /tmp/train.log | cut -c1-300
