// First each list by itself, then the order on each link, then all stages in time.
#include "parallel/schedule_check.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <set>
#include <tuple>

namespace picotron {
namespace {

std::string text_of(const Action& action) {
  return fmt::format("{} of microbatch {}, chunk {}", name_of(action.kind), action.microbatch,
                     action.chunk);
}

bool is_receive(ActionKind kind) {
  return is_message(kind) && !is_send(kind);
}

bool is_activation(ActionKind kind) {
  return kind == ActionKind::receive_activation || kind == ActionKind::send_activation;
}

// The message that a computation waits for.
ActionKind input_of(ActionKind kind) {
  return kind == ActionKind::forward ? ActionKind::receive_activation
                                     : ActionKind::receive_gradient;
}

// One tensor on its way: which one, and when each thing happened. Not known yet: nothing.
struct Message {
  int64_t microbatch = 0;
  int from = 0;  // the virtual stage that sends it
  std::optional<double> sent, posted, arrived;
  double used = 0;
};

// The messages that one stage sends to one neighbour, in order.
struct Link {
  int sender = 0, receiver = 0;
  std::vector<Message> messages = {};
};

class Walk {
 public:
  Walk(const std::vector<Schedule>& lists, const ScheduleOptions& options, Delivery delivery,
       const ActionCosts& costs)
      : lists_(lists), o_(options), delivery_(delivery), costs_(costs) {
    check(static_cast<int>(lists.size()) == o_.stages, "a list for each stage");
    report_.stages.resize(lists.size());
    for (int stage = 0; stage < o_.stages; ++stage) check_list(stage);
    match_links();
  }

  ScheduleReport run() {
    next_.assign(lists_.size(), 0);
    now_.assign(lists_.size(), 0);
    for (bool moved = true; moved;) {
      moved = false;
      for (int stage = 0; stage < o_.stages; ++stage) {
        while (next_[at(stage)] < lists_[at(stage)].size() && step(stage)) moved = true;
      }
    }
    for (int stage = 0; stage < o_.stages; ++stage) {
      if (next_[at(stage)] < lists_[at(stage)].size()) throw circle_from(stage);
    }
    count_in_flight();
    double work = 0;
    for (const StageReport& stage : report_.stages) {
      for (const TimedAction& timed : stage.timeline) {
        work += timed.end - timed.begin;
        report_.makespan = std::max(report_.makespan, timed.end);
      }
    }
    if (report_.makespan > 0) report_.bubble = 1 - work / (o_.stages * report_.makespan);
    return std::move(report_);
  }

 private:
  static size_t at(int index) { return static_cast<size_t>(index); }
  int place(int stage, int chunk) const { return chunk * o_.stages + stage; }
  int last_place() const { return o_.virtual_stages() - 1; }

  [[noreturn]] static void fail(Flaw flaw, int stage, const Action& action,
                                const std::string& what) {
    throw BrokenSchedule(flaw, stage, action,
                         fmt::format("stage {}: {} {}", stage, text_of(action), what));
  }

  // Does this stage have that message at all? The ends of the pipeline lack some.
  bool has(int stage, const Action& action) const {
    if (action.microbatch < 0 || action.microbatch >= o_.microbatches) return false;
    if (action.chunk < 0 || action.chunk >= o_.chunks) return false;
    if (o_.forward_only && action.kind != ActionKind::forward && !is_activation(action.kind))
      return false;
    const int v = place(stage, action.chunk);
    switch (action.kind) {
      case ActionKind::receive_activation:
      case ActionKind::send_gradient:
        return v > 0;
      case ActionKind::send_activation:
      case ActionKind::receive_gradient:
        return v < last_place();
      default:
        return true;
    }
  }

  // Order and completeness of one stage's list; what it keeps.
  void check_list(int stage) {
    using Key = std::tuple<ActionKind, int64_t, int>;
    std::set<Key> done;
    StageReport& report = report_.stages[at(stage)];
    int64_t saved = 0, kept = 0;
    for (const Action& action : lists_[at(stage)]) {
      const auto is_done = [&](ActionKind kind) {
        return done.contains({kind, action.microbatch, action.chunk});
      };
      const auto needs = [&](bool holds, const char* what) {
        if (!holds) fail(Flaw::too_early, stage, action, what);
      };
      const auto needs_input = [&] {
        const ActionKind input = input_of(action.kind);
        needs(is_done(input) || !has(stage, {input, action.microbatch, action.chunk}),
              "comes before the receive of its input is started");
      };
      const bool input_done = is_done(ActionKind::backward) || is_done(ActionKind::backward_input);
      if (!has(stage, action)) fail(Flaw::unknown, stage, action, "does not exist on this stage");
      if (is_done(action.kind)) fail(Flaw::repeated, stage, action, "is in the list twice");
      switch (action.kind) {
        case ActionKind::forward:
          needs_input();
          report.most_saved = std::max(report.most_saved, ++saved);
          report.most_kept = std::max(report.most_kept, ++kept);
          break;
        case ActionKind::backward:
        case ActionKind::backward_input:
          if (input_done) fail(Flaw::repeated, stage, action, "follows another backward of it");
          needs(is_done(ActionKind::forward), "comes before its forward");
          needs_input();
          --saved;
          if (action.kind == ActionKind::backward) --kept;
          break;
        case ActionKind::backward_weight:
          needs(is_done(ActionKind::backward_input), "comes before its backward_input");
          --kept;
          break;
        case ActionKind::send_activation:
          needs(is_done(ActionKind::forward), "comes before its forward");
          break;
        case ActionKind::send_gradient:
          needs(input_done, "comes before its backward");
          break;
        default:
          break;
      }
      done.insert({action.kind, action.microbatch, action.chunk});
    }
    for (int64_t m = 0; m < o_.microbatches; ++m) {
      for (int c = 0; c < o_.chunks; ++c) {
        const auto must = [&](ActionKind kind) {
          if (has(stage, {kind, m, c}) && !done.contains({kind, m, c}))
            fail(Flaw::missing, stage, {kind, m, c}, "is missing");
        };
        must(ActionKind::forward);
        must(ActionKind::send_activation);
        if (o_.forward_only) continue;
        const bool split = done.contains({ActionKind::backward_input, m, c});
        must(split ? ActionKind::backward_weight : ActionKind::backward);
        must(ActionKind::send_gradient);
      }
    }
  }

  Link& link_of(int stage, ActionKind kind) {
    const int sender = is_send(kind) ? stage
                       : kind == ActionKind::receive_activation
                           ? (stage + o_.stages - 1) % o_.stages
                           : (stage + 1) % o_.stages;
    return links_[at(sender * 2 + (is_activation(kind) ? 0 : 1))];
  }

  // The virtual stage that sends the message.
  int sender_of(int stage, const Action& action) const {
    const int v = place(stage, action.chunk);
    if (is_send(action.kind)) return v;
    return action.kind == ActionKind::receive_activation ? v - 1 : v + 1;
  }

  // NCCL has no tags: the n-th send meets the n-th receive.
  void match_links() {
    links_.resize(lists_.size() * 2);
    for (int stage = 0; stage < o_.stages; ++stage) {
      for (const Action& action : lists_[at(stage)]) {
        if (!is_send(action.kind)) continue;
        Link& link = link_of(stage, action.kind);
        link.sender = stage;
        link.receiver = (stage + (is_activation(action.kind) ? 1 : o_.stages - 1)) % o_.stages;
        link.messages.push_back({action.microbatch, sender_of(stage, action), {}, {}, {}});
      }
    }
    number_.resize(lists_.size());
    for (int stage = 0; stage < o_.stages; ++stage) {
      std::map<Link*, size_t> count;  // receives of each link so far
      for (const Action& action : lists_[at(stage)]) {
        if (!is_receive(action.kind)) continue;
        Link& link = link_of(stage, action.kind);
        const size_t n = count[&link]++;
        check(n < link.messages.size(), "check_list() found every send");
        const Message& sent = link.messages[n];
        if (sent.microbatch != action.microbatch || sent.from != sender_of(stage, action)) {
          fail(Flaw::crossed, stage, action,
               fmt::format("is receive {} from stage {}, whose send {} is of microbatch {}, chunk "
                           "{}: messages have no tags",
                           n, link.sender, n, sent.microbatch, sent.from / o_.stages));
        }
        number_[at(stage)][{action.kind, action.microbatch, action.chunk}] = n;
      }
    }
    issued_.assign(links_.size(), 0);
  }

  // When message n of a link has arrived; nothing while that is not known.
  std::optional<double> arrival(Link& link, size_t n) {
    Message& message = link.messages[n];
    if (message.arrived) return message.arrived;
    if (!message.sent || (delivery_ == Delivery::rendezvous && !message.posted)) return {};
    double start = *message.sent;
    if (delivery_ == Delivery::rendezvous) start = std::max(start, *message.posted);
    if (n > 0) {
      const auto before = arrival(link, n - 1);
      if (!before) return {};
      start = std::max(start, *before);
    }
    return message.arrived = start + costs_.message;
  }

  double duration(int stage, const Action& action) const {
    const double size = costs_.virtual_stages.empty()
                            ? 1.0
                            : costs_.virtual_stages.at(at(place(stage, action.chunk)));
    switch (action.kind) {
      case ActionKind::forward:
        return size * costs_.forward;
      case ActionKind::backward:
        return size * (costs_.backward_input + costs_.backward_weight);
      case ActionKind::backward_input:
        return size * costs_.backward_input;
      default:
        return size * costs_.backward_weight;
    }
  }

  // What the next action of a stage waits for: a message of a link that has to arrive. The send
  // that is one too many waits for an older one to end.
  std::optional<std::pair<Link*, size_t>> awaited(int stage) {
    const Action& action = lists_[at(stage)][next_[at(stage)]];
    if (is_send(action.kind)) {
      Link& link = link_of(stage, action.kind);
      const size_t n = issued_[static_cast<size_t>(&link - links_.data())];
      if (delivery_ == Delivery::buffered || n < kSendsUnderWay) return {};
      return std::pair(&link, n - kSendsUnderWay);
    }
    if (is_message(action.kind) || action.kind == ActionKind::backward_weight) return {};
    const ActionKind input = input_of(action.kind);
    const auto found = number_[at(stage)].find({input, action.microbatch, action.chunk});
    if (found == number_[at(stage)].end()) return {};
    return std::pair(&link_of(stage, input), found->second);
  }

  // Runs the next action of a stage if it need not wait for what is not known yet.
  bool step(int stage) {
    const Action& action = lists_[at(stage)][next_[at(stage)]];
    double& now = now_[at(stage)];
    const auto waits_for = awaited(stage);
    if (waits_for) {
      const auto arrived = arrival(*waits_for->first, waits_for->second);
      if (!arrived) return false;
      now = std::max(now, *arrived);
    }
    if (is_send(action.kind)) {
      Link& link = link_of(stage, action.kind);
      link.messages[issued_[static_cast<size_t>(&link - links_.data())]++].sent = now;
    } else if (is_message(action.kind)) {
      const size_t n = number_[at(stage)].at({action.kind, action.microbatch, action.chunk});
      link_of(stage, action.kind).messages[n].posted = now;
    } else {
      if (waits_for) waits_for->first->messages[waits_for->second].used = now;
      const double end = now + duration(stage, action);
      report_.stages[at(stage)].timeline.push_back({action, now, end});
      now = end;
    }
    ++next_[at(stage)];
    return true;
  }

  // Who has to act before the awaited message can arrive: the first on the link that has not begun.
  static int whose_turn(const Link& link, size_t n) {
    for (size_t i = 0; i <= n; ++i) {
      if (!link.messages[i].sent) return link.sender;
      if (!link.messages[i].arrived) return link.receiver;
    }
    return link.receiver;
  }

  BrokenSchedule circle_from(int stage) {
    std::vector<int> path;
    while (std::ranges::find(path, stage) == path.end()) {
      path.push_back(stage);
      const auto waits_for = awaited(stage);
      check(waits_for.has_value(), "a stage that does not move waits for a message");
      stage = whose_turn(*waits_for->first, waits_for->second);
    }
    path.erase(path.begin(), std::ranges::find(path, stage));
    std::string sentence;
    for (size_t i = 0; i < path.size(); ++i) {
      const int waits_for = path[(i + 1) % path.size()];
      sentence += fmt::format("{}stage {} waits for stage {} at its {}", i == 0 ? "" : "; ",
                              path[i], waits_for, text_of(next_action(path[i])));
    }
    return {Flaw::circle, stage, next_action(stage), "a circle: " + sentence};
  }
  const Action& next_action(int stage) const { return lists_[at(stage)][next_[at(stage)]]; }

  void count_in_flight() {
    for (int stage = 0; stage < o_.stages; ++stage) {
      std::vector<std::pair<double, int>> changes;
      for (const Link& link : links_) {
        if (link.receiver != stage) continue;
        for (const Message& message : link.messages) {
          if (message.used <= *message.sent) continue;
          changes.emplace_back(*message.sent, 1);
          changes.emplace_back(message.used, -1);
        }
      }
      std::ranges::sort(changes);  // at one time what was used goes before what was sent
      int64_t count = 0;
      for (const auto& [time, change] : changes) {
        count += change;
        auto& most = report_.stages[at(stage)].most_in_flight;
        most = std::max(most, count);
      }
    }
  }

  const std::vector<Schedule>& lists_;
  const ScheduleOptions& o_;
  const Delivery delivery_;
  const ActionCosts& costs_;
  ScheduleReport report_;
  std::vector<Link> links_;  // of stage s: activations at 2 s, gradients at 2 s + 1
  // Which message of its link each receive is, by stage.
  std::vector<std::map<std::tuple<ActionKind, int64_t, int>, size_t>> number_;
  std::vector<size_t> issued_;  // sends of each link so far
  std::vector<size_t> next_;    // action of each stage
  std::vector<double> now_;     // time of each stage
};

}  // namespace

ScheduleReport check_schedules(const std::vector<Schedule>& lists, const ScheduleOptions& options,
                               Delivery delivery, const ActionCosts& costs) {
  return Walk(lists, options, delivery, costs).run();
}

std::vector<Schedule> all_stages(ScheduleOptions options) {
  std::vector<Schedule> lists;
  for (options.stage = 0; options.stage < options.stages; ++options.stage)
    lists.push_back(make_schedule(options));
  return lists;
}

std::string draw(const ScheduleReport& report, double unit) {
  int chunks = 1;
  double shortest = report.makespan;
  for (const StageReport& stage : report.stages) {
    for (const TimedAction& timed : stage.timeline) {
      chunks = std::max(chunks, timed.action.chunk + 1);
      shortest = std::min(shortest, timed.end - timed.begin);
    }
  }
  const auto label = [&](const Action& action) {
    const char letter = action.kind == ActionKind::forward           ? 'F'
                        : action.kind == ActionKind::backward_weight ? 'W'
                                                                     : 'B';
    std::string text = fmt::format("{}{}", letter, action.microbatch);
    if (chunks > 1) text += static_cast<char>('a' + action.chunk % 26);
    return text;
  };
  size_t width = 2;
  for (const TimedAction& timed : report.stages.front().timeline)
    width = std::max(width, label(timed.action).size() + 1);
  const double cell = unit > 0 ? unit : shortest;
  const auto column = [&](double time) { return static_cast<size_t>(std::lround(time / cell)); };
  const auto idle = [&](size_t cells) {
    std::string text;
    for (; cells > 0; --cells) text += fmt::format("{:<{}}", ".", width);
    return text;
  };

  std::string drawing;
  for (size_t stage = 0; stage < report.stages.size(); ++stage) {
    std::string row;
    size_t filled = 0;
    for (const TimedAction& timed : report.stages[stage].timeline) {
      const size_t begin = column(timed.begin), end = column(timed.end);
      if (end <= begin) continue;  // shorter than a column
      row += idle(begin - filled);
      std::string text = label(timed.action);
      const size_t cells = (end - begin) * width;
      if (end - begin > 1) text.resize(cells - 1, '-');
      text.resize(cells, ' ');
      row += text;
      filled = end;
    }
    row += idle(column(report.makespan) - filled);
    while (row.ends_with(' ')) row.pop_back();
    drawing += fmt::format("stage {:<4}{}\n", stage, row);
  }
  return drawing;
}

}  // namespace picotron
